"""Graphs print as text and parse back to the same graph."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.compiler.graphs import decoder, decoder_loss
from tests.compiler.random_graphs import random_graph
from tests.golden_files import check_golden

from planform.compiler.ir import Graph, Init, copy, verify
from planform.compiler.ops import OPS
from planform.compiler.passes.stateful import stateful
from planform.compiler.size import symbol
from planform.compiler.text import TextError, attribute_text, equal, from_text, op_text, to_text
from planform.compiler.types import Dim, TensorType


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_random_graphs_round_trip(seed):
    graph = random_graph(seed)
    verify(graph)
    text = to_text(graph)
    back = from_text(text)
    assert to_text(back) == text
    verify(back)
    assert equal(graph, back) and equal(graph, copy(graph))


def _same(a: Graph, b: Graph) -> None:
    """Equality by structure, not by text."""
    assert (a.name, a.stream) == (b.name, b.stream)
    numbers = [dict[object, int](), dict[object, int]()]
    for v, w in zip(a.inputs, b.inputs, strict=True):
        assert type(v) is type(w)
        assert vars(v) == vars(w)
        numbers[0][v] = numbers[1][w] = len(numbers[0])
    for m, n in zip(a.nodes, b.nodes, strict=True):
        assert (m.op, m.origin) == (n.op, n.origin)
        assert [numbers[0][v] for v in m.inputs] == [numbers[1][v] for v in n.inputs]
        for v, w in zip(m.outputs, n.outputs, strict=True):
            assert (v.name, v.type) == (w.name, w.type)
            numbers[0][v] = numbers[1][w] = len(numbers[0])
        assert (m.region is None) == (n.region is None)
        if m.region and n.region:
            _same(m.region, n.region)
    assert {k: numbers[0][v] for k, v in a.outputs.items()} == {k: numbers[1][v] for k, v in b.outputs.items()}


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_what_is_read_back_has_the_same_structure(seed):
    graph = random_graph(seed)
    _same(graph, from_text(to_text(graph)))


@pytest.mark.parametrize("make", [decoder_loss, decoder, lambda n: stateful(decoder(n, nested=True))])
def test_models_round_trip(make):
    _same(make(2), from_text(to_text(make(2))))


def test_golden():
    check_golden("ir/decoder_step.txt", to_text(stateful(decoder(3))))


def test_attributes_that_equal_their_defaults_are_left_out():
    assert op_text(OPS["rms_norm"]()) == "rms_norm"
    assert op_text(OPS["rms_norm"](offset=1.0)) == "rms_norm(offset=1.0)"
    # An integer where the default is a float is another constant.
    assert op_text(OPS["constant"](0)) == "constant(value=0)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"), (-3, "-3"), (0.1, "0.1"), (1e-30, "1e-30"), (float("inf"), "inf"), (True, "true"), (None, "none"),
        ('a "b"\n', '"a \\"b\\"\\n"'), (Dim("ff", 8), "dim[ff=8]"), (Dim(None, 8), "dim[8]"),
        (Dim("t", symbol("t")), "dim[t]"), (Dim(None, symbol("t")), "dim[(t)]"),
        ((Dim("a", 1), Dim("b", symbol("t") * 2)), "[a=1, b=2*t]"), ((), "()"), ((1, (2.5, "x")), '(1, (2.5, "x"))'),
        (("a",), '("a",)'), (symbol("t") // 3 + 1, "size((t)//3 + 1)"), (Init("ones"), "ones"),
        (Init("normal", (0.5, 2)), "normal(0.5, 2)"), (TensorType("i8", (Dim("d", 4),)), "i8[d=4]"),
    ],
)  # fmt: skip
def test_every_kind_of_attribute(value, text):
    assert attribute_text(value) == text
    made = from_text(f'graph g {{\n  %x = constant(value={text}, dtype="f32") : f32[]\n  return %x\n}}\n')
    assert made.nodes[0].op.value == value  # type: ignore[attr-defined]
    assert type(made.nodes[0].op.value) is type(value)  # type: ignore[attr-defined]


def test_what_has_no_text_is_refused():
    with pytest.raises(ValueError, match="attribute"):
        attribute_text(object())


WRONG = [
    ("grap g {\n}", 1, 1, "expected `graph`"),
    ("graph g {", 2, 1, "expected `return`"),
    ("graph g {\n  return\n}\nmore", 4, 1, "nothing may follow"),
    ("graph g {\n  %x = input : f33[]\n  return\n}", 2, 16, "no dtype `f33`"),
    ("graph g {\n  %x = input : f32[a, a]\n  return\n}", 2, 19, "occurs twice"),
    ("graph g {\n  %x = input : f32[a b]\n  return\n}", 2, 19, "not a size"),
    ("graph g {\n  %x = inputs : f32[]\n  return\n}", 2, 8, "no op `inputs`"),
    ("graph g {\n  %x = input(count=1) : f32[]\n  return\n}", 2, 14, "`input` has no attribute `count`"),
    ("graph g {\n  %x = input(name=\"y\") : f32[]\n  return\n}", 2, 8, "no attribute `name`"),
    ("graph g {\n  %x = input : f32[]\n  %x = input : f32[]\n  return\n}", 3, 4, "%x is defined twice"),
    ("graph g {\n  %x = exp %y : f32[]\n  return\n}", 2, 13, "%y is not defined"),
    ("graph g {\n  %x = constant(1) : f32[]\n  return\n}", 2, 17, "expected an attribute"),
    ("graph g {\n  %x = constant(value=1, value=2) : f32[]\n  return\n}", 2, 26, "`value` is given twice"),
    ("graph g {\n  %x = constant(value=?) : f32[]\n  return\n}", 2, 23, "expected a value"),
    ("graph g {\n  %x = softcap : f32[]\n  return\n}", 2, 8, "cap"),
    ("graph g {\n  %x = constant : i32[]\n  return\n}", 2, 8, "`constant` gives f32[] here"),
    ("graph g {\n  %x = constant : f32[], f32[]\n  return\n}", 2, 18, "1 results and 2 types"),
    ("graph g {\n  %x = constant : f32[] : f32[]\n  return\n}", 2, 25, "unexpected `: f32[]`"),
    ("graph g {\n  %x = constant : f32[]\n  %y = input : f32[]\n  return\n}", 3, 8, "inputs stand before nodes"),
    ("graph g {\n  %x = constant : f32[]\n  return y=%z\n}", 3, 13, "%z is not defined"),
    ("graph g {\n  %x = constant : f32[]\n  return %x", 4, 1, "expected `}`"),
    ("graph g {\n  %a = input : f32[]\n  %x = repeat(count=2, carries=1, stacks=0) %a : f32[]\n  return %x\n}",
     3, 8, "`repeat` needs a region"),
    ("graph g {\n  %x = constant(value=size(2*)) : f32[]\n  return\n}", 2, 27, "not a size"),
    ("graph g {\n  %x = constant(value=normal(\"a\")) : f32[]\n  return\n}", 2, 34, "takes numbers"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "column", "message"), WRONG)
def test_errors_say_where_and_what(text, line, column, message):
    with pytest.raises(TextError) as e:
        from_text(text)
    assert message in e.value.message
    assert (e.value.line, e.value.column) == (line, column)


@given(st.integers(0, 10_000), st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_texts_give_a_graph_or_an_error_with_a_place(seed, data):
    text = to_text(random_graph(seed % 40))
    at = data.draw(st.integers(0, len(text) - 1))
    cut = data.draw(st.integers(0, 8))
    new = data.draw(st.text(st.sampled_from('%=(){}[]:,@"\\ \n1ax.-'), max_size=3))
    try:
        graph = from_text(text[:at] + new + text[at + cut :])
    except TextError:
        return
    assert equal(graph, from_text(to_text(graph)))
