"""Streams without end: a model whose state doesn't grow goes on past every table and every exact float32 angle."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
import pytest

from planform.backends import onnx, reference, xla
from planform.compiler.analyses.cost import grows
from planform.compiler.ir import Graph
from planform.compiler.passes.pipeline import optimise

from .onnx_models import fused, gemma, griffin, step, tokens, weights

BATCH, TIME = 2, 5
HEADS = {"head_dim": 32}  # of which the runtime's own kernel would rotate the half, by a table of angles
PER_ROW = {"count": np.full(BATCH, TIME, np.int32)}
Far = Callable[[Graph, np.ndarray, int], np.ndarray]
"""(model, chunk [batch, time], length) -> logits of the chunk behind so many entries whose state is zero."""


def by_reference(graph: Graph, ids: np.ndarray, length: int) -> np.ndarray:
    form = step(graph)
    states = reference.zeros(form, {"batch": BATCH, "capacity": 0})
    states["length"][:] = length
    return reference.run(form, weights(graph), {"tokens": ids, **PER_ROW}, states)["logits"]


def by_xla(graph: Graph, ids: np.ndarray, length: int) -> np.ndarray:
    form, policy = optimise(graph, "xla", "step"), xla.Policy()
    params = xla.from_logical(lambda name: weights(graph)[name], form, policy)
    states = xla.initial_states(form, policy, {"batch": BATCH, "capacity": 0})
    states["length"] += length
    run = jax.jit(xla.lower(form, policy))
    return np.asarray(run(params, {"tokens": ids, **PER_ROW}, states)["logits"])


def by_onnx(graph: Graph, ids: np.ndarray, length: int) -> np.ndarray:
    lowered = onnx.lower(fused(step(graph)), weights(graph).__getitem__, max_positions=64)
    feeds: dict[str, np.ndarray] = {}
    for s in lowered.states:
        shape = [d if isinstance(d, int) else BATCH for d in s.past.shape or ()]
        feeds[str(s.past.name)] = np.zeros(shape, s.past.dtype.numpy())  # type: ignore[union-attr]
    feeds["past/length"][:] = length
    return onnx.run(lowered, {"tokens": ids, **PER_ROW, **feeds})["logits"]


@pytest.mark.parametrize("length", [300, 3_000_000, 2_000_000_000])
@pytest.mark.parametrize("backend, tolerance", [(by_xla, 3e-5), (by_onnx, 5e-6)])
def test_far_from_the_start(backend: Far, tolerance: float, length: int) -> None:
    graph, ids = griffin(**HEADS), tokens(BATCH, TIME)
    want = by_reference(graph, ids, length)
    assert onnx.difference(want, by_reference(graph, ids, length + 1)) < 1e-7  # distances count, not places
    assert onnx.difference(backend(graph, ids, length), want) < tolerance


def test_a_session_goes_on_past_all_positions() -> None:
    """Against the reference over everything, 20 windows and 6 times the positions that were asked for."""
    graph, ids = griffin(**HEADS), tokens(1, 400)
    session = onnx.Session(onnx.lower(fused(step(graph)), weights(graph).__getitem__, max_positions=64))
    assert session.max_positions is None
    session.reset(1)
    got = [session.advance(ids[:, i : i + 50]) for i in range(0, 350, 50)]
    got += [session.advance(ids[:, i : i + 1]) for i in range(350, 400)]
    want = reference.run(graph, weights(graph), {"tokens": ids})["logits"]
    assert onnx.difference(np.concatenate(got, 1), want) < 2e-5


def test_which_states_grow() -> None:
    assert grows(step(gemma())) and not grows(step(griffin()))
    session = onnx.Session(onnx.lower(fused(step(gemma())), weights(gemma()).__getitem__, max_positions=64))
    session.reset(1, 64)
    with pytest.raises(ValueError, match="room for 64"):
        session.advance(tokens(1, 65))
