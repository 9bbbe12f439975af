"""The block algebra: what it parses to, where, and what it says when it can't."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planform.spec import Source, Span, SpecError, ast, parse_body, parse_expression, parse_signature, unparse
from planform.spec.expressions import CONSTANTS, MAX_DEPTH, parse_tensor

NOWHERE = Span(Source("nowhere", ""), 0, 0)


def expression(text: str) -> ast.Expr:
    return parse_expression(Source("t", text))


@pytest.mark.parametrize(
    ("text", "bracketed"),
    [
        ("id + attend >> id + feed", "(id + attend) >> (id + feed)"),
        ("a >> b >> c", "(a >> b) >> c"),
        ("a - b - c", "(a - b) - c"),
        ("a + b * c", "a + (b * c)"),
        ("a / b // c * d", "((a / b) // c) * d"),
        ("-a * b", "(-a) * b"),
        ("-a ^ 2", "-(a ^ 2)"),
        ("a ^ b ^ c", "a ^ (b ^ c)"),
        ("query_scale ^ -0.5", "query_scale ^ (-0.5)"),
        ("2 ^ -x ^ 3", "2 ^ (-(x ^ 3))"),
        ("layer ^ 2 >> f", "(layer ^ 2) >> f"),
        ("tokens >> embed(table) * sqrt(d) >> norm", "(tokens >> (embed(table) * sqrt(d))) >> norm"),
        ("lm(x).logits ^ 2", "(lm(x).logits) ^ 2"),
        ("f(a)(b).c", "(((f)(a))(b)).c"),
        ("a *\n\n b # half\n + c", "(a * b) + c"),
    ],
)
def test_precedence(text: str, bracketed: str) -> None:
    assert expression(text) == expression(bracketed)


def test_atoms() -> None:
    values = expression('[1, 2.5, 3e-4, 1E+2, "b t -> t b", true, false, none, in, id, [],]')
    assert isinstance(values, ast.ListExpr)
    assert [getattr(v, "value", getattr(v, "name", None)) for v in values.items[:-1]] == [
        1, 2.5, 3e-4, 100.0, "b t -> t b", True, False, None, "in", "id",
    ]  # fmt: skip
    assert isinstance(values.items[0], ast.Number)
    assert type(values.items[0].value) is int


def test_a_call_keeps_positions_names_and_order() -> None:
    call = expression("f(a, k=v, name=w)")
    assert isinstance(call, ast.Call)
    assert [(a.name, a.value.span.text) for a in call.arguments] == [(None, "a"), ("k", "v"), ("name", "w")]
    assert [a.name_span.text for a in call.arguments if a.name_span] == ["k", "name"]


def test_a_body_is_statements_and_one_bare_value() -> None:
    body = parse_body(Source("t", "x = a >> b  # first\ny = x\n    + 1\n\ny * 2"))
    assert [s.name for s in body.statements] == ["x", "y", None]
    assert body.statements[1].value.span.text == "x\n    + 1"


def test_spans_index_the_whole_file() -> None:
    text = "blocks:\n  feed: |\n    norm >>\n    glu(ff, act).out\n"
    start = text.index("norm")
    body = parse_body(Source("t", text), start, len(text))
    value = body.statements[0].value
    assert isinstance(value, ast.Binary)
    assert (value.operator_span.line, value.operator_span.column) == (3, 10)
    assert isinstance(value.right, ast.Attribute)
    assert value.right.name_span.text == "out"
    assert str(value.right.span) == "t:4:5"


def test_tensor_and_signature() -> None:
    decl = parse_tensor(Source("t", "int[batch, time // chunk, 3]"))
    assert decl.dtype == "int"
    assert [unparse(d) for d in decl.dims] == ["batch", "time // chunk", "3"]
    assert parse_tensor(Source("t", "float[]")).dims == ()
    name, span, parameters = parse_signature(Source("t", "  glu(width, bias=false)"), 2, 24)
    assert (name, span.column) == ("glu", 3)
    assert [(p.name, p.default and unparse(p.default)) for p in parameters] == [
        ("width", None),
        ("bias", "false"),
    ]


@pytest.mark.parametrize(
    ("text", "code", "column", "message"),
    [
        ("f(a, b", "PF0120", 2, "never closed"),
        ("f(a, b]", "PF0120", 7, "doesn't close"),
        ("a + b)", "PF0120", 6, "closes nothing"),
        ("x = f(a\ny = g(b)", "PF0120", 6, "never closed"),
        ('f("b t', "PF0120", 3, "never closed"),
        ("f(a b)", "PF0113", 5, "side by side"),
        ("norm attention(h)", "PF0113", 6, "side by side"),
        ("x = 1 y = 2", "PF0113", 7, "side by side"),
        ("2b", "PF0113", 2, "side by side"),
        ("a ** b", "PF0112", 3, r"`\*\*`"),
        ("a == b", "PF0112", 3, "no comparisons"),
        ("f(a.b = 3)", "PF0112", 7, "can't stand here"),
        ("a | b", "PF0112", 3, r"unexpected `\|`"),
        ("a -> b", "PF0112", 3, "pattern string"),
        ("f('b t')", "PF0112", 3, "unexpected `'`"),
        ("a >> >> b", "PF0112", 6, "unexpected `>>`"),
        ("f(k=)", "PF0112", 5, r"unexpected `\)`"),
        ("a +", "PF0111", 3, "ends too early"),
        ("  # nothing", "PF0110", 1, "is missing"),
        ("", "PF0110", 1, "is missing"),
        ("a\nb", "PF0114", 1, "only the last"),
        ("f(a)\n(b + c)", "PF0118", 1, "would call"),
        ("f(a=1, b)", "PF0119", 8, "can't follow"),
        ("f(a=1, a=2)", "PF0119", 8, "given twice"),
        ("in = 3", "PF0117", 1, "fixed meaning"),
        ("9" * 5000, "PF0115", 1, "too large"),
        ("1e999", "PF0115", 1, "too large"),
        ("(" * 500, "PF0116", MAX_DEPTH + 1, "levels deep"),
        (">>".join(["f"] * 200), "PF0116", 1, "levels deep"),
        ("-" * 500 + "x", "PF0116", 500 - MAX_DEPTH + 1, "levels deep"),
    ],
)
def test_syntax_errors_point_at_their_place(text: str, code: str, column: int, message: str) -> None:
    with pytest.raises(SpecError, match=message) as error:
        parse_body(Source("t", text))
    (found,) = error.value.diagnostics
    assert found.code == code
    assert found.span is not None
    assert found.span.column == column


def test_expected_is_in_words() -> None:
    with pytest.raises(SpecError) as error:
        expression("f(, a)")
    assert error.value.diagnostics[0].expected == ("a value", "`)`")


NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True).filter(lambda n: n not in CONSTANTS)
ATOMS = st.one_of(
    st.integers(0, 2**40).map(lambda n: ast.Number(n, span=NOWHERE)),
    st.floats(0, allow_nan=False, allow_infinity=False).map(lambda x: ast.Number(x, span=NOWHERE)),
    st.text(st.characters(exclude_characters='"\n', exclude_categories=["Cs"])).map(
        lambda s: ast.String(s, span=NOWHERE)
    ),
    st.sampled_from([True, False, None]).map(lambda c: ast.Constant(c, span=NOWHERE)),
    NAMES.map(lambda n: ast.Name(n, span=NOWHERE)),
)


@st.composite
def arguments(draw: st.DrawFn, inner: st.SearchStrategy[ast.Expr]) -> tuple[ast.Argument, ...]:
    plain = draw(st.lists(inner, max_size=2))
    names = draw(st.lists(NAMES, max_size=2, unique=True))
    return (*(ast.Argument(v) for v in plain), *(ast.Argument(draw(inner), n) for n in names))


def compound(inner: st.SearchStrategy[ast.Expr]) -> st.SearchStrategy[ast.Expr]:
    operators = st.sampled_from([">>", "+", "-", "*", "/", "//", "^"])
    return st.one_of(
        st.builds(lambda o, a, b: ast.Binary(o, a, b, span=NOWHERE, operator_span=NOWHERE), operators, inner, inner),
        inner.map(lambda x: ast.Negate(x, span=NOWHERE)),
        st.lists(inner, max_size=3).map(lambda items: ast.ListExpr(tuple(items), span=NOWHERE)),
        st.builds(lambda f, a: ast.Call(f, a, span=NOWHERE), inner, arguments(inner)),
        st.builds(lambda v, n: ast.Attribute(v, n, span=NOWHERE, name_span=NOWHERE), inner, NAMES),
    )


EXPRESSIONS = st.recursive(ATOMS, compound, max_leaves=20)


@settings(max_examples=400, deadline=None)
@given(EXPRESSIONS)
def test_unparse_round_trips(expr: ast.Expr) -> None:
    assert expression(unparse(expr)) == expr


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(NAMES.filter(lambda n: n not in ("in", "id")), EXPRESSIONS), max_size=4), EXPRESSIONS)
def test_bodies_round_trip(named: list[tuple[str, ast.Expr]], last: ast.Expr) -> None:
    statements = (*(ast.Statement(n, e) for n, e in named), ast.Statement("last", last))
    body = ast.Body(statements, NOWHERE)
    assert parse_body(Source("t", unparse(body))) == body


def test_unparse_writes_no_more_brackets_than_needed() -> None:
    text = "x >> (a + b) * f(c, k=-d ^ -0.5).out >> (e >> f) ^ (n - 1)"
    assert unparse(expression(text)) == text
