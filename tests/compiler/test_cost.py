"""Costs against counts made by hand, and against published ones."""

from __future__ import annotations

import pytest
from tests.compiler.graphs import STREAM, D, decoder, decoder_loss

from planform.compiler.analyses.cost import (
    count_parameters,
    flops_per_token,
    node_costs,
    parameters_by_prefix,
    state_size,
    total_cost,
)
from planform.compiler.elaborate import elaborate
from planform.compiler.ir import Builder, Input, Parameter
from planform.compiler.ops.elementwise import Add, Exp
from planform.compiler.ops.linear import Linear
from planform.compiler.parameters import count
from planform.compiler.passes.stateful import stateful
from planform.compiler.passes.unroll import unroll
from planform.compiler.size import evaluate, symbols
from planform.compiler.types import Dim, TensorType
from planform.spec import load

GEMMA2 = {"2b": (2_024_517_888, 26), "9b": (8_324_201_984, 42), "27b": (26_047_480_320, 46)}


@pytest.mark.parametrize("size", GEMMA2)
def test_gemma_2_has_the_published_counts(size):
    graph = elaborate(load("gemma2", size))
    found = count_parameters(graph)
    assert found.outside_embedding == GEMMA2[size][0]  # arXiv:2408.00118, table 2
    assert found.total == count(graph)


def test_gemma_2_state():
    """Half the layers keep 4096 entries, half all of them; 4 heads of 256, keys and values, float32."""
    found = state_size(stateful(elaborate(load("gemma2", "2b"))))
    entry = 4 * 256 * 2 * 4
    assert found.per_token == 13 * entry
    assert found.fixed == 13 * 4096 * entry
    assert found.at(8192) == 13 * entry * (4096 + 8192)


def test_a_linear_map_costs_two_flops_a_weight():
    b = Builder("g", stream="time")
    x = b.add(Input("x", STREAM))
    w = b.add(Parameter("w", TensorType("f32", (D, Dim("ff", 12))), path="w"))
    graph = b.finish({"y": b.emit(Linear((Dim("ff", 12),)), x, w)})
    assert str(total_cost(graph).flops) == "192*batch*time"
    assert flops_per_token(graph).flops == 2 * 8 * 12
    assert str(total_cost(graph).elements) == "20*batch*time + 96"


@pytest.mark.parametrize("nested", [False, True])
def test_repetitions_count_as_often_as_they_run(nested):
    graph = decoder(3, nested=nested)
    flat = unroll(graph)
    assert total_cost(graph) == total_cost(flat)
    assert sum(runs for _, runs, _ in node_costs(graph)) == len(flat.nodes)
    assert count_parameters(graph) == count_parameters(flat)


def test_flops_of_windowed_attention_do_not_depend_on_the_length():
    windowed, full = (flops_per_token(decoder(2, window=w)).flops for w in (4, None))
    assert symbols(windowed) == frozenset()
    assert symbols(full) == {"time"}
    assert evaluate(full, {"time": 4}) == windowed


def test_what_does_not_grow_with_the_stream_is_kept_apart():
    found = flops_per_token(decoder_loss(1))
    assert found.rest == 0
    b = Builder("g", stream="time")
    x = b.add(Input("x", STREAM))
    w = b.add(Parameter("w", TensorType("f32", (D,)), path="w"))

    graph = b.finish({"y": b.emit(Add(), x, b.emit(Exp(), w))})
    assert (flops_per_token(graph).flops, flops_per_token(graph).rest) == (8, 8)


def test_a_graph_without_a_stream_has_no_tokens():
    b = Builder("g")
    x = b.add(Input("x", STREAM))
    assert flops_per_token(b.finish({"x": x})) is None


def test_prefixes_add_up():
    graph = decoder(2)
    found = parameters_by_prefix(graph, 2)
    assert set(found) == {"table", "lm.layer[0:2]", "lm.norm"}
    assert sum(found.values()) == count_parameters(graph).total
    assert (found["table"], found["lm.norm"]) == (88, 8)
