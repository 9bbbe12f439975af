"""YAML with places: raw slices, the 1.2 core schema, what is refused, and the traps."""

from __future__ import annotations

import math

import pytest

from planform.spec import Source, SpecError, load_text
from planform.spec.yaml import MAX_CHARACTERS, MAX_DEPTH, Mapping, Scalar, Sequence, parse


def scalar(text: str, key: str = "a") -> Scalar:
    node = parse(Source("t", text)).get(key)
    assert isinstance(node, Scalar)
    return node


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("a: norm >> f(x)   # note\nb: 1", "norm >> f(x)"),
        ("a: norm >>\n   f(x)\nb: 1", "norm >>\n   f(x)"),
        ("a: 'f(x) # no comment'", "f(x) # no comment"),
        ('a: "f(x): y"', "f(x): y"),
        ("a: |   # head\n  x = f(1)  # note\n\n  x: #\n# out\nb: 1", "  x = f(1)  # note\n\n  x: #"),
        ("a: >-\n   one\n   two\n\nb: 1", "   one\n   two"),
        ("a: |2\n    deep\n", "    deep"),
        ("a: |\r\n  x\r\nb: 1\r\n", "  x"),
        ("{b: 1, a: x / 2}", "x / 2"),
        ("a:\n  late\n", "late"),
    ],
)
def test_content_is_the_raw_slice(text: str, content: str) -> None:
    node = scalar(text)
    assert node.content.text == content
    assert text[node.content.start : node.content.end] == content


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"), ("on", "on"), ("no", "no"), ("true", True), ("False", False),
        ("null", None), ("~", None), ("12", 12), ("-3", -3), ("0o17", 15), ("0x1F", 31), ("017", 17),
        ("1e-4", 1e-4), ("1.5", 1.5), (".5", 0.5), ("1_000", "1_000"), ("1:30", "1:30"), (".inf", math.inf),
        ("'12'", "12"), ('"true"', "true"), ("2b", "2b"), ("2024-01-01", "2024-01-01"), ("=", "="),
    ],
)  # fmt: skip
def test_plain_scalars_follow_the_core_schema(text: str, value: object) -> None:
    found = scalar(f"a: {text}").value
    assert found == value
    assert type(found) is type(value)


def test_structure_and_places() -> None:
    root = parse(Source("t", "top:\n  list: [a, {b: c}]\n  empty:\n  other:\n  - x\n"))
    top = root.get("top")
    assert isinstance(top, Mapping)
    listed = top.get("list")
    assert isinstance(listed, Sequence)
    assert listed.span.text == "[a, {b: c}]"
    assert top.entries["other"].key.span.line == 4
    assert scalar("empty:\nb: 1", "empty").value is None


def faults(text: str) -> list[tuple[str, int, int]]:
    with pytest.raises(SpecError) as error:
        parse(Source("t", text))
    return [(d.code, d.span.line, d.span.column) for d in error.value.diagnostics if d.span]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # syntax
        ("a: 1\n b: 2", [("PF0102", 2, 3)]),
        ("a:\n  b: 1\n c: 2", [("PF0102", 3, 2)]),
        ("a: |\n x\ny", [("PF0102", 3, 1)]),
        ("a: 1\nb", [("PF0102", 2, 1)]),
        ("a: {b: 1", [("PF0102", 1, 4)]),
        ("a: 'x", [("PF0102", 1, 4)]),
        ("a:\n\tb: 1", [("PF0103", 2, 1)]),
        ("a: x\ty", [("PF0103", 1, 5)]),
        ("a: x\x00", [("PF0108", 1, 5)]),
        ("just text", [("PF0101", 1, 1)]),
        ("- a", [("PF0101", 1, 1)]),
        # refused
        ("a: 1\nb: 2\na: 3\nb: 4", [("PF0104", 3, 1), ("PF0104", 4, 1)]),
        ("a: &x 1\nb: *x", [("PF0105", 1, 4), ("PF0105", 2, 4)]),
        ("a: !!python/object:os.system x", [("PF0105", 1, 4)]),
        ("<<: {a: 1}", [("PF0105", 1, 1)]),
        ("[a]: 1", [("PF0105", 1, 1)]),
        ("---\na: 1\n---\nb: 1", [("PF0105", 3, 1)]),
        ("%YAML 1.1\n---\na: 1", [("PF0105", 2, 1)]),
        ("a: " + "[" * 100, [("PF0108", 1, MAX_DEPTH + 4)]),
        ("a" * (MAX_CHARACTERS + 1), [("PF0108", 1, 1)]),
        # traps
        ("a: f(x): y", [("PF0107", 1, 8)]),
        ("a: x: ", [("PF0107", 1, 5)]),
        ("a: f(x, # c\n  y)\n", [("PF0107", 1, 9)]),
        ("a: [x] >> y", [("PF0109", 1, 4)]),
        ('a: "b t" >> y', [("PF0109", 1, 4)]),
        ("a: 'b t' >> y", [("PF0109", 1, 4)]),
        ("a: @x", [("PF0109", 1, 4)]),
        ("a: `x", [("PF0109", 1, 4)]),
        ("a: %x", [("PF0109", 1, 4)]),
        ("a: - x", [("PF0109", 1, 4)]),
        ("a: * b", [("PF0109", 1, 4)]),
        ("a: >> b", [("PF0109", 1, 4)]),
        ("a: | b", [("PF0109", 1, 4)]),
        ("a: {b: f(x, y)}", [("PF0106", 1, 8), ("PF0106", 1, 13)]),
        ("a: {b: int[batch, time]}", [("PF0106", 1, 11)]),
    ],
)
def test_faults(text: str, expected: list[tuple[str, int, int]]) -> None:
    assert faults(text) == expected


def test_aliases_cannot_multiply() -> None:
    """The billion laughs: aliases are refused where they stand, never followed."""
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    assert len(faults("\n".join(lines))) == 50  # the limit of findings


@pytest.mark.parametrize("text", ['f("b t")', "f('b t')"])
def test_an_expression_in_quotes_that_needs_escapes_is_refused(text: str) -> None:
    quote = '"' if '"' in text else "'"
    escaped = text.replace(quote, "\\" + quote if quote == '"' else quote * 2)
    spec = f"planform: 1\nmodel: m\nblocks:\n  a: {quote}{escaped}{quote}\ngraphs: {{g: {{inputs: {{}}, body: a}}}}\n"
    with pytest.raises(SpecError) as error:
        load_text(spec)
    (found,) = error.value.diagnostics
    assert found.code == "PF0109"
    assert found.span is not None
    assert (found.span.line, found.span.column) == (4, 9)


def test_a_comment_that_cuts_an_expression_is_named_as_the_cause() -> None:
    spec = "planform: 1\nmodel: m\nblocks:\n  a: f(x, # half\ngraphs: {g: {inputs: {}, body: a}}\n"
    with pytest.raises(SpecError) as error:
        load_text(spec)
    (found,) = error.value.diagnostics
    assert found.code == "PF0107"
    assert str(found.span) == "<text>:4:11"
