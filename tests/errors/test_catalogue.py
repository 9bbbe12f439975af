"""The catalogue of wrong specs: every NAME.yaml here is reported exactly as NAME.txt says.

A first line `# load: size=large set=d=3 mesh=data=2` is how the case is loaded. `UPDATE_GOLDEN=1` rewrites the texts:
read the difference before you keep it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from planform.compiler.check import check_file
from planform.spec import Diagnostic, in_order, render

FOLDER = Path(__file__).parent
CASES = sorted(FOLDER.glob("*.yaml"))
_FINDING = re.compile(r"^(?:error|warning)\[(PF\d{4})\].*(?:\n *--> (.+):(\d+):(\d+))?", re.MULTILINE)


def check(path: Path) -> list[Diagnostic]:
    """The findings on a case, in the order of the file."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    options = first.removeprefix("# load: ").split() if first.startswith("# load: ") else []
    size = next((o.removeprefix("size=") for o in options if o.startswith("size=")), None)
    overrides = tuple(o.removeprefix("set=") for o in options if o.startswith("set="))
    axes = next((o.removeprefix("mesh=") for o in options if o.startswith("mesh=")), "")
    mesh = {a: int(n) for a, _, n in (axis.partition("=") for axis in axes.split(",")) if n}
    return in_order(check_file(path.name, size, overrides, mesh or None))


def places(text: str) -> list[tuple[str, str, str]]:
    """Code, line and column of every finding in a rendered text."""
    return [(code, line, column) for code, _, line, column in _FINDING.findall(text)]


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_case(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)  # texts name files as a user in this folder would see them
    found = check(path)
    assert found, "nothing was found"
    text = "\n\n".join(render(d) for d in found) + "\n"
    golden = path.with_suffix(".txt")
    if os.environ.get("UPDATE_GOLDEN") == "1":
        golden.write_text(text, encoding="utf-8")
    expected = golden.read_text(encoding="utf-8")
    assert [
        (d.code, str(d.span.line) if d.span else "", str(d.span.column) if d.span else "") for d in found
    ] == places(expected)
    assert text == expected


def test_the_catalogue_is_whole() -> None:
    assert len(CASES) >= 80
    assert {p.stem for p in FOLDER.glob("*.txt")} == {p.stem for p in CASES}
