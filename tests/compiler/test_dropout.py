"""Randomness: draws are inputs keyed by path, the same for every grouping; nothing is drawn on held-out data."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from planform.backends.reference import run
from planform.backends.xla import Policy, from_logical, lower
from planform.compiler.ir import Input, verify
from planform.compiler.parameters import initial
from planform.compiler.program import Update, program
from planform.spec import SpecError, load, load_text

SMALL = ["layers=5", "d=16", "ff=8", "heads=2", "kv_heads=1", "head_dim=8", "vocab=32"]


def update(rate: str = "0.5", use: str = "feed >> dropout") -> Update:
    text = load("gemma2", "small").source.text.replace("id + feed", f"id + ({use}({rate}))")
    return program(load_text(text, "dropout.yaml", "small", SMALL)).updates[0]


TOKENS = np.random.default_rng(0).integers(0, 32, (2, 9))


def test_every_layer_draws_its_own_and_groupings_agree() -> None:
    graph = update().loss
    verify(graph)
    draws = [v for v in graph.of_kind(Input) if v.default == "uniform"]
    assert [d.path for d in draws] == [
        "lm.layer[0:4:2].dropout.uniform",
        "lm.layer[1:4:2].dropout.uniform",
        "lm.layer[4].dropout.uniform",
    ]
    values = initial(graph.parameters)
    losses = []
    for unroll in (1, 2, 5):
        policy = Policy(unroll=unroll)
        f, parameters = lower(graph, policy), from_logical(values.__getitem__, graph, policy)
        losses.append([float(f(parameters, {"tokens": TOKENS}, rng=jax.random.key(k))["loss"]) for k in (1, 2)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    np.testing.assert_allclose(losses[0], losses[2], rtol=1e-6)
    assert losses[0][0] != losses[0][1]


def test_the_reference_sees_the_same_numbers_when_given_them() -> None:
    graph = update().loss
    values = initial(graph.parameters)
    draws = {
        v.name: np.random.default_rng(1).random(v.type.shape({"batch": 2, "time": 9}))
        for v in graph.of_kind(Input)
        if v.default == "uniform"
    }
    policy = Policy(unroll=2)
    got = lower(graph, policy)(from_logical(values.__getitem__, graph, policy), {"tokens": TOKENS, **draws})["loss"]
    want = run(graph, values, {"tokens": TOKENS, **draws})["loss"]
    np.testing.assert_allclose(got, want, rtol=2e-5)


def test_held_out_and_inference_forms_draw_nothing() -> None:
    one = update()
    assert not [v for v in one.heldout.of_kind(Input) if v.default == "uniform"]
    plain = program(load("gemma2", "small", SMALL)).updates[0]
    values = initial(plain.loss.parameters)
    a, b = (run(g, values, {"tokens": TOKENS})["loss"] for g in (one.heldout, plain.loss))
    assert a == b


def test_a_graph_called_twice_draws_twice() -> None:
    text = """planform: 1
model: m
dims: {d: 4}
graphs:
  f:
    inputs: {x: "float[batch, d]"}
    body: |
      y = x >> linear(d, name="m") >> dropout(0.5)
train:
  data: arrays(x)
  loss: mean(square(f(x).y - f(x).y))
  optimizer: sgd(0.1)
"""
    graph = program(load_text(text)).updates[0].loss
    draws = [v for v in graph.of_kind(Input) if v.default == "uniform"]
    assert len({d.path for d in draws}) == 2
    assert [p.path for p in graph.parameters] == ["f.m.weight"]


def test_no_key_no_draw_and_bad_rates() -> None:
    graph = update().loss
    policy = Policy()
    parameters = from_logical(initial(graph.parameters).__getitem__, graph, policy)
    with pytest.raises(KeyError, match="uniform"):
        lower(graph, policy)(parameters, {"tokens": TOKENS})
    with pytest.raises(SpecError, match="PF0324"):
        update("1.0")
