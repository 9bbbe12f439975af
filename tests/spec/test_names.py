"""Names, scopes, calls, circles, and what is left unused."""

from __future__ import annotations

import pytest

from planform.spec import Diagnostic, Diagnostics, SpecError, check_names, load, load_text, render

from .systems import FIELDS, OPS, SYSTEMS


def findings(text: str) -> list[Diagnostic]:
    """Everything found in a text: by reading it, and by its names."""
    try:
        spec = load_text(text, "t")
    except SpecError as error:
        return list(error.diagnostics)
    found = Diagnostics()
    found.extend(spec.warnings)
    check_names(spec, OPS, found)
    return found.found


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_the_systems_of_the_examples_have_no_findings(name: str) -> None:
    spec = load_text(SYSTEMS[name], f"{name}.yaml")
    found = Diagnostics()
    check_names(spec, OPS, found, FIELDS.get(name, ()))
    assert [render(d) for d in (*found.found, *spec.warnings)] == []


def test_what_a_data_source_supplies_must_be_told() -> None:
    found = Diagnostics()
    check_names(load_text(SYSTEMS["d4pg"]), OPS, found)
    assert {d.span.text for d in found.found if d.span} == {"next_observation", "reward", "discount"}


def test_the_shipped_gemma2_has_no_unknown_names() -> None:
    found = Diagnostics()
    check_names(load("gemma2@small"), OPS, found)
    assert found.found == []


def spec(
    *,
    dims: str = "d: 8",
    blocks: str = "f: linear(d)",
    body: str = "y = x >> f",
    more: str = "",
) -> str:
    lines = "".join(f"  {line}\n" for line in blocks.split("; "))
    text = "".join(f"      {line}\n" for line in body.split("; "))
    return (
        f"planform: 1\nmodel: m\ndims: {{{dims}}}\nblocks:\n{lines}"
        f"graphs:\n  g:\n    inputs:\n      x: float[batch, time, d]\n    body: |\n{text}{more}"
    )


def train(loss: str, data: str = "arrays(x)", optimizer: str = "adam(1)") -> str:
    return f"train:\n  data: {data}\n  loss: {loss}\n  optimizer: {optimizer}\n"


@pytest.mark.parametrize(
    ("text", "code", "at", "said"),
    [
        # unknown names
        (spec(blocks="f: liner(d)"), "PF0220", "liner", "did you mean `linear`?"),
        (spec(body="y = x >> ff"), "PF0220", "ff", "did you mean `f`?"),
        (spec(body="y = h >> f; h = x"), "PF0220", "h", "defined further down"),
        (spec(blocks="f: linear(d, bias=True)"), "PF0220", "True", "did you mean `true`?"),
        (spec(blocks="f: linear(d, bias=null)"), "PF0220", "null", "nothing is written `none`"),
        (spec(more=train("mse(g(x).y, xx)")), "PF0220", "xx", "did you mean `x`?"),
        (spec(more=train("mse(g(x).y, x)", data="arays(x)")), "PF0220", "arays", "did you mean `arrays`?"),
        (spec(more=train("mse(g(x).y, x)", optimizer="adm(1)")), "PF0220", "adm", "did you mean `adam`?"),
        # calls
        (spec(blocks="f(n): linear(n)", body="y = x >> f(d, d)"), "PF0224", "d", "takes 1 argument, not 2"),
        (spec(body="y = f(x)"), "PF0224", "x", "x >> f"),
        (spec(blocks="f(count): linear(count)", body="y = x >> f(cuont=d)"), "PF0224", "cuont", "did you mean `count`"),
        (spec(blocks="f(n): linear(n)", body="y = x >> f(d, n=d)"), "PF0224", "n", "given twice"),
        (spec(blocks="f(n): linear(n)", body="y = x >> f"), "PF0224", "f", "needs `n`"),
        (spec(blocks="f(n): linear(n)", body="y = x >> f(name=\"a\")"), "PF0224", "f", "needs `n`"),
        (spec(more=train("mse(g(x).z, x)")), "PF0225", "z", "it puts out y"),
        (spec(body="h = x >> f; y = h", more=train("g(x).h")), "PF0225", "h", "outputs: [y, h]"),
        (spec(more=train("g().y")), "PF0224", "g", "needs `x`"),
        # circles
        (spec(blocks="f: id + f"), "PF0223", "f", "repeated with `^`"),
        (spec(blocks="f: a >> id; a: b; b: f"), "PF0223", "f", "f -> a -> b -> f"),
        (spec(blocks="relu: relu >> linear(d)", body="y = x >> relu"), "PF0223", "relu", "hides the op"),
        # one namespace
        (spec(dims="d: 8, f: 3"), "PF0221", "f", "defined again as a block"),
        (spec(body="d = x >> f"), "PF0221", "d", "is already a dim"),
        (spec(body="x = x >> f"), "PF0221", "x", "is already a tensor"),
        (spec(body="y = x >> f; y = y >> f"), "PF0221", "y", "is already a tensor"),
        (spec(body="time = x >> f"), "PF0221", "time", "is already a dim"),
        (spec(blocks="f(n): |\n    n = linear(d)\n    n", body="y = x >> f(d)"), "PF0221", "n", "an argument of"),
        # outputs, stream, sharding
        (spec(body="x >> f"), "PF0226", "x >> f", "has no name"),
        (spec(more="    outputs: [yy]\n"), "PF0226", "outputs", "did you mean `y`?"),
        (spec(more="    stream: tme\n"), "PF0226", "tme", "did you mean `time`?"),
        (spec(more="sharding: {bach: data}\n"), "PF0227", "bach", "did you mean `batch`?"),
        # unused
        (spec(dims="d: 8, e: 3"), "PF0222", "e", "remove it"),
        (spec(blocks="f: linear(d); h: k; k: linear(d)"), "PF0222", "h", "remove it"),
        (spec(blocks="f: linear(d); h: k; k: linear(d)"), "PF0222", "k", "remove it"),
        (spec(dims="d: 8, e: 2 * w, w: 3"), "PF0222", "w", "remove it"),
        (spec(blocks="f(d): linear(d)", body="y = x >> f(3)", dims="d: 8, e: 3"), "PF0222", "e", "remove it"),
        (spec(more="params: {t: {shape: [d]}}\n"), "PF0222", "t", "remove it"),
        (spec(blocks="f: linear(d); glu(n): linear(n)"), "PF0222", "glu", "remove it"),
    ],
)  # fmt: skip
def test_findings(text: str, code: str, at: str, said: str) -> None:
    found = [d for d in findings(text) if d.code == code and d.span and d.span.text == at]
    assert len(found) == 1, [render(d) for d in findings(text)]
    assert said in render(found[0])


@pytest.mark.parametrize(
    "text",
    [
        spec(blocks="f(d): linear(d)", body="y = x >> f(3)"),  # an argument hides a dim
        spec(blocks='f: linear(d, name="a"); h(n, m=3): linear(n)', body='y = x >> f(name="b") >> h(3, name="c")'),
        spec(blocks="f(act): linear(d) >> act; h(act): f(act)", body="y = x >> h(relu) >> h(f(relu))"),
        spec(blocks="f: linear(d); g2(b): b(3); k(n): linear(n)", body="y = x >> f >> g2(k)"),
        spec(body="h = x >> f; y = h + x >> linear(in)"),
        spec(blocks="f(n, m=2 * n, k=in): linear(n + m) >> linear(k)", body="y = x >> f(d)"),
        spec(blocks="f: linear(d); glu(n, act): linear(n) >> act", body="y = x >> f >> glu(3, relu)"),
        spec(body="y = x >> f >> mean(\"b t c -> b c\")", more="sharding: {c: tensor, batch: [data, fsdp]}\n"),
    ],
)  # fmt: skip
def test_no_findings(text: str) -> None:
    assert [render(d) for d in findings(text)] == []


def test_the_prelude_does_not_see_a_specs_other_names() -> None:
    """A block called `attend` stays apart from the op that the prelude's `attention` uses."""
    text = spec(blocks="attend: attention(1, 1, d)", body="y = x >> attend")
    assert findings(text) == []


def test_a_prelude_block_of_the_specs_own_is_used_by_the_prelude_no_more_than_it_says() -> None:
    """An own `glu` replaces the shipped one; calling it wrongly points at the own definition."""
    text = spec(blocks="glu(n): linear(n)", body="y = x >> glu(d, relu)")
    (found,) = findings(text)
    assert found.code == "PF0224"
    assert found.notes[0].span is not None
    assert found.notes[0].span.source.name == "t"


def test_long_chains_of_blocks_need_no_recursion() -> None:
    blocks = "; ".join(f"b{i}: b{i + 1}" for i in range(2000)) + "; b2000: linear(d)"
    assert findings(spec(blocks=blocks, body="y = x >> b0")) == []


def test_several_findings_in_one_run() -> None:
    text = spec(dims="d: 8, e: 1", blocks="f: liner(d) >> rulu", body="y = x >> f >> f(3)")
    assert [d.code for d in findings(text)] == ["PF0222", "PF0220", "PF0220", "PF0224"]
