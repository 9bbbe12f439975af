"""The wheel holds what the checkout has, and nothing generic lands in site-packages."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .test_layout import ROOMS, ROOT, tracked

DATA = (".py", ".yaml", ".lark")


@pytest.mark.slow
def test_wheel_is_whole_and_runs(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for path in tracked():
        (clone / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, clone / path, follow_symlinks=False)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, clone],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == {"planform"}
    want = {f"planform/{p}" for p in tracked() if p.split("/")[0] in ROOMS and p.endswith(DATA)}
    assert want <= set(names), sorted(want - set(names))[:5]
    shown = subprocess.run(
        [sys.executable, "-c", "from planform.runtime.cli import main; main()", "show", "gemma2@2b", "--json"],
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"outside_embedding": 2024517888' in shown.stdout
