"""Logits of the last valid position, without those of the others."""

from __future__ import annotations

import numpy as np
import pytest
from tests.compiler.graphs import STREAM, decoder, parameters

from planform.backends.reference import run, zeros
from planform.compiler.ir import Builder, Input, verify
from planform.compiler.ops.elementwise import Add, Exp, Mul
from planform.compiler.ops.reduce import Sum
from planform.compiler.passes.last import last_only
from planform.compiler.passes.stateful import stateful
from planform.compiler.types import Dim


def test_the_same_logits_and_states():
    step = stateful(decoder(layers=2))
    last = last_only(step)
    verify(last)
    weights, rng = parameters(step), np.random.default_rng(3)
    states = zeros(step, {"batch": 3, "capacity": 9})
    inputs = {"tokens": rng.integers(0, 11, (3, 5)), "count": np.array([5, 1, 3], np.int32)}
    want, got = (run(g, weights, inputs, states) for g in (step, last))
    assert got["logits"].shape == (3, 1, 11)
    rows = want.pop("logits")[np.arange(3), inputs["count"] - 1]
    np.testing.assert_allclose(got.pop("logits")[:, 0], rows, rtol=1e-12)
    for path, state in want.items():
        np.testing.assert_array_equal(got[path], state)


def test_no_node_makes_logits_of_every_position():
    last = last_only(stateful(decoder(layers=3)))
    wide = [v for n in last.walk() for v in n.outputs if "vocab" in v.type.names and "time" in v.type.names]
    assert wide == []
    # The choice stands right behind the layers: the last norm runs on one entry too.
    producers = last.producers()
    (node,) = [n for n in last.nodes if n.op.name == "last"]
    assert producers[node.inputs[0]].op.name == "repeat"


def test_results_with_other_users_are_not_made_twice():
    """Of a layer that isn't repeated, what follows attention runs on one entry; what attention reads does not."""
    last = last_only(stateful(decoder(layers=1)))
    assert [n.inputs[0].name for n in last.nodes if n.op.name == "last"] == ["core", "embed_2"]
    assert sorted(n.op.name for n in last.nodes).count("linear") == 7
    wide = [n.origin.path for n in last.nodes if n.op.name == "linear" and "time" in n.output.type.names]
    assert wide == ["lm.layer.attend.query", "lm.layer.attend.key", "lm.layer.attend.value"]


def test_operands_without_the_stream_stay_as_they_are():
    b = Builder("g", stream="time")
    x = b.add(Input("x", STREAM))
    y = b.emit(Mul(), b.emit(Exp(), x), b.emit(Sum((Dim("d", 8),)), x))
    y = b.emit(Add(), y, b.add(Input("bias", STREAM.without([0, 1]))))
    last = last_only(stateful(b.finish({"y": y})))
    verify(last)
    x = np.random.default_rng(0).normal(size=(2, 4, 8))
    inputs = {"x": x, "bias": np.arange(8.0), "count": np.array([4, 2])}
    got = run(last, {}, inputs, {"length": np.zeros(2)})["y"]
    want = np.exp(x) * x.sum(-1, keepdims=True) + np.arange(8.0)
    np.testing.assert_allclose(got[:, 0], want[[0, 1], [3, 1]])


def test_a_training_graph_is_refused():
    with pytest.raises(ValueError, match="step form"):
        last_only(decoder())
