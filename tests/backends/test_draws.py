"""Random numbers that a training program names: their distribution, and when they are the same."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from planform.backends.xla import Policy, from_logical, lower
from planform.compiler.ir import Input
from planform.compiler.parameters import initial
from planform.compiler.passes.pipeline import optimise
from planform.compiler.program import program
from planform.spec import load_text

SPEC = """
planform: 1
model: drawn
dims: {d: 3, classes: 7}
graphs:
  f:
    inputs:
      x: float[batch, d]
    body: y = x >> linear(d)
train:
  data: arrays(x)
  sample:
    noise: normal[batch, d]
    level: uniform[batch]
    kind: category[batch, classes]
  loss: mean(f(x).y + noise)
  optimizer: adam(1e-3)
  evaluate:
    metrics:
      noise: mean(noise)
      wide: mean(square(noise))
      level: mean(level)
      most: max(level)
      kind: mean(cast(kind, "f32"))
      first: mean(cast(equal(kind, 0), "f32"))
      last: mean(cast(equal(kind, 6), "f32"))
"""


@pytest.fixture(scope="module")
def measure():
    graph = optimise(program(load_text(SPEC)).updates[0].heldout, "xla", "training")
    assert {v.name: v.default for v in graph.of_kind(Input) if v.default} == {
        "noise": "normal", "level": "uniform", "kind": "uniform"}  # fmt: skip
    values = initial(graph.parameters)
    f, stored = jax.jit(lower(graph, Policy())), from_logical(values.__getitem__, graph, Policy())
    x = np.zeros((20_000, 3), np.float32)
    return lambda seed: {k: float(v) for k, v in f(stored, {"x": x}, None, jax.random.key(seed)).items()}


def test_distributions(measure) -> None:
    found = measure(0)
    assert found["noise"] == pytest.approx(0, abs=0.02) and found["wide"] == pytest.approx(1, abs=0.03)
    assert found["level"] == pytest.approx(0.5, abs=0.02) and 0.99 < found["most"] < 1
    assert found["kind"] == pytest.approx(3, abs=0.06)
    assert found["first"] == pytest.approx(1 / 7, abs=0.01) and found["last"] == pytest.approx(1 / 7, abs=0.01)


def test_a_key_decides(measure) -> None:
    assert measure(0) == measure(0)
    assert measure(0)["noise"] != measure(1)["noise"]
