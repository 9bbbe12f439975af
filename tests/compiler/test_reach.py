"""Reach adds up along the graph, and says no more than what the reference does."""

from __future__ import annotations

import numpy as np
import pytest
from tests.compiler.graphs import ROWS, STREAM, TIME, D, decoder, decoder_loss, parameters

from planform.backends.reference import run
from planform.compiler.analyses.reach import reach, total_reach
from planform.compiler.ir import Builder, Graph, Input
from planform.compiler.ops.attention import Attend
from planform.compiler.ops.contract import Reach
from planform.compiler.ops.norm import Softmax
from planform.compiler.ops.reduce import Mean
from planform.compiler.ops.sequence import Next
from planform.compiler.passes.stateful import stateful
from planform.compiler.passes.unroll import unroll
from planform.compiler.types import Dim, TensorType


@pytest.mark.parametrize(("layers", "nested", "back"), [(1, False, 3), (3, False, 9), (2, True, 12)])
def test_windows_add_up(layers, nested, back):
    """A window of 4 looks 3 back; a group of 2 layers, twice, 12."""
    graph = decoder(layers, nested=nested)
    assert total_reach(graph) == {"logits": Reach(back, 0)}
    assert total_reach(unroll(graph)) == {"logits": Reach(back, 0)}


def test_bounds_are_tight():
    """The last entry depends on the one that is farthest in reach, and on none beyond."""
    graph = decoder(3)
    weights = parameters(graph)
    tokens = np.random.default_rng(0).integers(0, 11, (1, 14))
    before = run(graph, weights, {"tokens": tokens})["logits"]
    changed = []
    for t in range(14):
        other = tokens.copy()
        other[0, t] = (other[0, t] + 1) % 11
        after = run(graph, weights, {"tokens": other})["logits"]
        changed.append(bool(np.any(before[0, -1] != after[0, -1])))
    assert changed == [t >= 13 - 9 for t in range(14)]


def test_without_a_window_all_the_past_counts():
    assert total_reach(decoder(2, window=None)) == {"logits": Reach(None, 0)}
    assert total_reach(decoder(2, causal=False)) == {"logits": Reach(6, 6)}


def test_next_looks_one_ahead():
    b = Builder("g", stream="time")
    tokens, document = b.add(Input("tokens", ROWS)), b.add(Input("document", ROWS, default="zeros"))
    y = b.emit(Next(), b.emit(Next(), tokens, document), document)
    assert total_reach(b.finish({"y": y})) == {"y": Reach(0, 2)}
    assert total_reach(decoder_loss(1)) == {"loss": Reach(None, None)}


def one(op, x: TensorType, *more: TensorType) -> Graph:
    b = Builder("g", stream="time")
    values = [b.add(Input(f"x{i}", t)) for i, t in enumerate((x, *more))]
    return b.finish({"y": b.emit(op, *values)})


def test_what_mixes_the_stream_is_found_by_its_dims():
    assert total_reach(one(Mean((TIME,)), STREAM)) == {"y": Reach(None, None)}
    assert total_reach(one(Mean((D,)), STREAM)) == {"y": Reach(0, 0)}
    assert total_reach(one(Softmax(), STREAM)) == {"y": Reach(0, 0)}
    assert total_reach(one(Softmax(), STREAM.with_dims((STREAM.dims[0], D, TIME)))) == {"y": Reach(None, None)}


def test_attention_along_another_axis_does_not_mix_the_stream():
    heads = STREAM.with_dims((*STREAM.dims[:2], Dim("patches", 5), Dim("heads", 2), Dim("head_dim", 4)))
    graph = one(Attend(0.5), heads, heads, heads)
    assert total_reach(graph) == {"y": Reach(0, 0)}
    assert not stateful(graph).states[1:]


def test_values_inside_repetitions_have_the_reach_of_the_last_run():
    graph = decoder(3)
    region = next(n.region for n in graph.nodes if n.region)
    found = reach(graph)
    assert found[region.inputs[0]] == Reach(6, 0)
    assert found[next(iter(region.outputs.values()))] == Reach(9, 0)
