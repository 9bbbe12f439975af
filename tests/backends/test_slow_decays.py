"""Decays near 1: what a recurrence keeps for long must be right to the last digits of 1 - a, not of a."""

from __future__ import annotations

import numpy as np
import pytest

from planform.backends.reference import run
from planform.compiler.elaborate import elaborate
from planform.compiler.passes.pipeline import optimise
from planform.runtime.engines import engine
from planform.spec import load_text

TEXT = """\
planform: 1
model: slow
dims: {d: 64}
graphs:
  g:
    inputs:
      x: float[batch, time, d]
      gate: float[batch, time, d]
    body: y = linear_recurrence(x, gate >> sigmoid >> log_decay, normalise=true)
"""


def exact(gate: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """h of the second entry of a document whose inputs are 0 and 1: sqrt(1 - a^2)."""
    log_a = -8 * np.exp(-np.logaddexp(0, -gate)) * np.logaddexp(0, rate)
    return np.sqrt(-np.expm1(2 * log_a))


@pytest.mark.parametrize("backend", ["reference", "xla", "onnx"])
def test_what_slow_decays_take_in(backend: str) -> None:
    graph = elaborate(load_text(TEXT, "slow.yaml"))
    rate = np.linspace(-7, 2, 64).astype(np.float32)
    gate = np.broadcast_to(np.linspace(-30, 4, 50, dtype=np.float32)[:, None, None], (50, 2, 64))
    x = np.broadcast_to(np.array([0, 1], np.float32)[None, :, None], (50, 2, 64))
    want = exact(gate[:, 1].astype(np.float64), rate.astype(np.float64))
    weights, given = {"g.log_decay.rate": rate}, {"x": x, "gate": gate}
    if backend == "reference":
        got = run(graph, weights, given)["y"]
    else:
        got = engine(backend, weights).whole(optimise(graph, backend, "training"), given)["y"]  # type: ignore[arg-type]
    np.testing.assert_allclose(got[:, 1], want, rtol=1e-12 if backend == "reference" else 2e-6)
