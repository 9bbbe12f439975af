"""The checkout's shape: rooms, links, READMEs, and imports that go one way."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("spec", "compiler", "backends", "runtime", "models")


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_visible_top_level() -> None:
    visible = {p.split("/")[0] for p in tracked() if not p.startswith(".")}
    assert visible == {*ROOMS, "tests", "pyproject.toml", "README.md"}


def test_package_is_three_files_and_five_links() -> None:
    package = ROOT / ".pkg" / "planform"
    names = {p.name for p in package.iterdir() if p.name != "__pycache__"}
    assert names == {"__init__.py", "__main__.py", "py.typed", *ROOMS}
    for room in ROOMS:
        link = package / room
        assert link.is_symlink() and link.resolve() == ROOT / room, (
            f"{link} is no link: this checkout has no symbolic links (on Windows: git config core.symlinks true)"
        )


def test_every_room_says_what_lives_there() -> None:
    folders = {Path(p).parent for p in tracked() if p.endswith(".py") and not p.startswith((".", "tests/"))}
    missing = [str(f) for f in sorted(folders) if not (ROOT / f / "README.md").exists()]
    assert not missing, f"folders without a README.md: {missing}"


def test_rooms_below_know_no_tensor_library() -> None:
    """spec/ and compiler/ use NumPy at most; jax lives in backends/xla and runtime, onnx in backends/onnx."""
    allowed = {"jax": ("backends/xla/", "runtime/", "tests/"), "onnx": ("backends/onnx/", "runtime/", "tests/")}
    for path in tracked():
        if not path.endswith(".py") or path.startswith("."):
            continue
        for line in (ROOT / path).read_text().splitlines():
            words = line.split()
            if len(words) > 1 and words[0] in ("import", "from"):
                for library, places in allowed.items():
                    if words[1].split(".")[0].split("_")[0] == library:
                        assert path.startswith(places), f"{path} imports {words[1]}"
