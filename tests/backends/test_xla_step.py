"""The step form on XLA: chunks of any length give what the whole sequence gives."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from planform.backends import reference
from planform.backends.xla import Policy, from_logical, initial_states, lower
from planform.compiler.passes.stateful import stateful

from .xla_graphs import jit, logits, relative, tokens, values

TIME = 21


@pytest.mark.parametrize("unroll", [1, 2])
def test_ragged_chunks_past_the_ring_are_the_whole_sequence(unroll: int | None) -> None:
    graph = logits(layers=4)  # windows of 4: rings turn many times
    step, get = stateful(graph), values(graph)
    whole = tokens(3, TIME)
    want = reference.run(graph, get, {"tokens": whole})["logits"]
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        policy = Policy(compute="f64", unroll=unroll)
        stored = from_logical(get.__getitem__, step, policy)
        states = initial_states(step, policy, {"batch": 3, "capacity": TIME})
        f = jit(lower(step, policy), donate_argnums=2)
        at = np.zeros(3, np.int32)
        got: list[list[np.ndarray]] = [[], [], []]
        sizes = [1, 7, 1, 3, 1, 7, 3, 7, 7, 7]
        for new in sizes:
            # Rows hold different numbers of entries; what pads them is noise.
            count = np.minimum(rng.integers(1, new + 1, 3), TIME - at).astype(np.int32)
            chunk = rng.integers(0, 16, (3, new)).astype(np.int32)
            for b in range(3):
                chunk[b, : count[b]] = whole[b, at[b] : at[b] + count[b]]
            out = f(stored, {"tokens": chunk, "count": count}, states)
            assert np.isfinite(out["logits"]).all()
            states = {name: out[name] for name in states}
            for b in range(3):
                got[b].append(np.asarray(out["logits"])[b, : count[b]])
            at += count
        assert at.min() > 3 * 4
        for b in range(3):
            assert relative(np.concatenate(got[b]), want[b, : at[b]]) < 1e-12
        assert np.array_equal(states["length"], at)


def test_a_step_keeps_the_shapes_of_its_states() -> None:
    graph = stateful(logits(layers=10))
    for policy in (Policy(unroll=1), Policy(unroll=2), Policy(compute="bf16")):
        states = initial_states(graph, policy, {"batch": 2, "capacity": 8})
        stored = from_logical(values(graph).__getitem__, graph, policy)
        out = jax.eval_shape(lower(graph, policy), stored, {"tokens": tokens(2, 3)}, states)
        for name, s in states.items():
            assert (out[name].shape, out[name].dtype) == (s.shape, s.dtype), name


def test_a_window_keeps_no_more_than_it_sees() -> None:
    graph = stateful(logits(layers=2))
    states = initial_states(graph, Policy(), {"batch": 1, "capacity": 1000})
    assert sorted(s.shape[2] for n, s in states.items() if n.endswith(".key")) == [4, 1000]


def test_a_missing_state_is_named() -> None:
    graph = stateful(logits(layers=2))
    policy = Policy()
    stored = from_logical(values(graph).__getitem__, graph, policy)
    with pytest.raises(KeyError, match="length"):
        lower(graph, policy)(stored, {"tokens": tokens(1, 2)}, {})


def test_a_decoded_token_copies_no_cache() -> None:
    graph = stateful(logits(layers=2))
    policy = Policy()
    stored = from_logical(values(graph).__getitem__, graph, policy)
    states = initial_states(graph, policy, {"batch": 1, "capacity": 333})
    step = jax.jit(lower(graph, policy), donate_argnums=2)
    text = step.lower(stored, {"tokens": tokens(1, 1)}, states).compile().as_text()
    assert "f32[1,2,333,4]" in text
    assert not [line for line in text.splitlines() if " copy(" in line and "333" in line]
