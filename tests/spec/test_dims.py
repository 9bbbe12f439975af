"""The arithmetic of sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planform.spec import Diagnostics, Source, SpecError, dim_values, evaluate, load_text, parse_expression


def value(text: str, **values: int | float) -> int | float:
    return evaluate(parse_expression(Source("t", text)), values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 + 3 * 4", 14), ("7 // 2", 3), ("-7 // 2", -4), ("8 / 2", 4), ("7 / 2.0", 3.5), ("2 ^ 10", 1024),
        ("4 ^ -0.5", 0.5), ("-2 ^ 2", -4), ("d * (d - 1)", 56), ("2 ^ 40", 2**40),
    ],
)  # fmt: skip
def test_values(text: str, expected: float) -> None:
    found = value(text, d=8)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("text", "code", "column"),
    [
        ("7 / 2", "PF0213", 1),
        ("1 + d // 0", "PF0213", 7),
        ("1 / 0", "PF0213", 3),
        ("0 ^ -1", "PF0213", 3),
        ("(0 - 2) ^ 0.5", "PF0213", 1),
        ("d * dd", "PF0210", 5),
        ('"d"', "PF0212", 1),
        ("f(d)", "PF0212", 1),
        ("d >> d", "PF0212", 1),
        ("2 ^ 41", "PF0115", 1),
        ("10 ^ 10 ^ 10 ^ 10", "PF0115", 6),
        ("1.5 ^ 1e9", "PF0115", 1),
        ("2 ^ 40 * 2", "PF0115", 1),
        ("1e300 * 1e300", "PF0115", 1),
    ],
)
def test_faults_at_their_part(text: str, code: str, column: int) -> None:
    with pytest.raises(SpecError) as error:
        value(text, d=8)
    (found,) = error.value.diagnostics
    assert found.span is not None
    assert (found.code, found.span.column) == (code, column)


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_slash_is_exact_or_an_error(a: int, b: int) -> None:
    if a % b == 0:
        assert value(f"{a} / {b}") == a // b
    else:
        with pytest.raises(SpecError):
            value(f"{a} / {b}")


def spec_with(dims: str) -> str:
    return f"planform: 1\nmodel: m\ndims: {{{dims}}}\ngraphs: {{g: {{inputs: {{}}, body: f(a)}}}}\n"


def test_dims_use_one_another_in_any_order() -> None:
    found = Diagnostics()
    assert dim_values(load_text(spec_with("a: 2 * b, b: c + 1, c: 3")).dims, found) == {"a": 8, "b": 4, "c": 3}
    assert found.found == []


def test_a_circle_of_dims_is_reported_once_with_its_path() -> None:
    with pytest.raises(SpecError) as error:
        load_text(spec_with("a: b, b: c, c: b, x: a"))
    (found,) = error.value.diagnostics
    assert (found.code, found.label) == ("PF0211", "b -> c -> b")
    assert [n.text for n in found.notes] == ["`c` is set here"]


def test_independent_faults_are_all_reported() -> None:
    with pytest.raises(SpecError) as error:
        load_text(spec_with("a: 7 / 2, b: aa, c: b + 1, d: 1 / 0"))
    assert [d.code for d in error.value.diagnostics] == ["PF0213", "PF0210", "PF0213"]
