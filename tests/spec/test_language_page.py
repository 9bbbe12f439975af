"""What spec/LANGUAGE.md shows is what happens."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from planform.compiler.check import check
from planform.spec import Source, SpecError, load_text, parse_body, prelude, render, unparse
from planform.spec.schema import Document, Train

PAGE = (resources.files("planform.spec") / "LANGUAGE.md").read_text(encoding="utf-8")
FENCES = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SPECS = [
    (text, after[1] if after[0] == "text" else "")
    for (kind, text), after in zip(FENCES, [*FENCES[1:], ("", "")])
    if kind == "yaml"
]


@pytest.mark.parametrize(("text", "expected"), SPECS, ids=range(len(SPECS)))
def test_the_examples(text: str, expected: str) -> None:
    try:
        found = check(load_text(text, "example.yaml"))
    except SpecError as error:
        found = list(error.diagnostics)
    assert "\n\n".join(render(d) for d in found) == expected.rstrip("\n")


def test_the_page_has_examples_of_both_sorts() -> None:
    assert len(SPECS) >= 7
    assert {bool(expected) for _, expected in SPECS} == {True, False}


def cells(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its head."""
    lines = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n")
    start = next(i for i, line in enumerate(lines) if line.startswith("|---")) + 1
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[start:end]]


def test_every_key_is_described() -> None:
    described = set(re.findall(r"`(\w+)`", " ".join(row[0] for row in cells("2. The document"))))
    assert described == set(Document.model_fields)
    described = set(re.findall(r"`(\w+)`", " ".join(row[0] for row in cells("11. Training"))))
    assert described == set(Train.model_fields) - {"repeat"}


@pytest.mark.parametrize("text", [e for row in cells("3. Expressions") for e in re.findall(r"`([^`]+)`", row[0])])
def test_every_form_parses(text: str) -> None:
    body = parse_body(Source("page", text))
    assert parse_body(Source("page", unparse(body))) == body


def test_the_preludes_blocks_are_described_as_they_are() -> None:
    shown = [row[0].strip("`") for row in cells("8. The prelude")]
    real = []
    for block in prelude().values():
        words = [p.name if p.default is None else f"{p.name}={unparse(p.default)}" for p in block.parameters]
        real.append(f"{block.name}({', '.join(words)})")
    assert shown == real
