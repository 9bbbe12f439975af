"""Spectral norm over several steps: torch's rule (train mode), and the original's, written out in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils import spectral_norm

from planform.backends.xla import Policy, to_logical
from planform.compiler.ir import Buffer
from planform.compiler.parameters import initial
from planform.compiler.program import program
from planform.runtime.data import ArrayData, Share
from planform.runtime.mesh import make_mesh
from planform.runtime.trainer import Trainer
from planform.runtime.updates import Layout
from planform.spec import Spec, load_text

pytestmark = pytest.mark.usefixtures("double")

SPEC = """
planform: 1
model: normed
dims: {d: 5, classes: 4}
params:
  table: {shape: [classes, d], init: normal(1)}
blocks:
  layer: linear(d, weight=spectral_norm) >> tanh
graphs:
  score:
    inputs:
      x: float[batch, d]
      label: int[batch]
    body: |
      h = x >> layer ^ 3
      y = sum(h * (label >> embed(table >> spectral_norm(axis=0))), d)
train:
  data: arrays(x, label, heldout=0.2)
  loss: mean(square(score(x, label).y - 1)) + mean(square(score(2 * x, label).y + 1))
  optimizer: sgd(0.3)
  batch: 8
  steps: 6
"""
STEPS = 6


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(60, 5)), "label": rng.integers(0, 4, 60).astype(np.int32)}


def trained(spec: Spec, arrays: dict[str, np.ndarray], steps: int = STEPS) -> dict[str, np.ndarray]:
    layout = Layout(make_mesh({"data": 1}), (), Policy(compute="f64"))
    with Trainer(program(spec), ArrayData(arrays, Share(8)), layout) as trainer:
        trainer.run(steps)
        return to_logical(trainer.state.parameters)


def test_steps_are_those_of_torch(arrays: dict[str, np.ndarray]) -> None:
    """Two evaluations a step, each with an iteration of its own."""
    spec = load_text(SPEC)
    first = {n: a.astype(np.float64) for n, a in initial(program(spec).updates[0].loss.weights).items()}

    def normed(module: Any, weight: np.ndarray, u: np.ndarray) -> Any:
        module.weight.data = torch.tensor(weight)
        module = spectral_norm(module)
        module.weight_u.copy_(torch.tensor(u))  # before the first iteration its length means nothing
        return module

    layers = [
        normed(torch.nn.Linear(5, 5, bias=False), first[f"score.layer[{i}].linear.weight"].T,
               first[f"score.layer[{i}].linear.spectral_norm.u"])
        for i in range(3)
    ]  # fmt: skip
    table = normed(torch.nn.Embedding(4, 5), first["table"], first["score.spectral_norm.u"])
    weights = [m.weight_orig for m in (*layers, table)]
    optimizer = torch.optim.SGD(weights, 0.3)

    def score(x: Any, label: Any) -> Any:
        for layer in layers:
            x = torch.tanh(layer(x))
        return (x * table(label)).sum(-1)

    batches = ArrayData(arrays, Share(8)).batches(0)
    for _ in range(STEPS):
        batch = next(batches)
        x, label = torch.tensor(batch["x"]), torch.tensor(batch["label"]).long()
        optimizer.zero_grad()
        ((score(x, label) - 1) ** 2).mean().add(((score(2 * x, label) + 1) ** 2).mean()).backward()
        optimizer.step()
    found = trained(spec, arrays)
    for i, layer in enumerate(layers):
        path = f"score.layer[{i}].linear"
        np.testing.assert_allclose(found[f"{path}.weight"].T, layer.weight_orig.detach(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found[f"{path}.spectral_norm.u"], layer.weight_u, rtol=1e-9, atol=1e-12)
        assert np.abs(found[f"{path}.weight"] - first[f"{path}.weight"]).max() > 0.01
    np.testing.assert_allclose(found["table"], table.weight_orig.detach(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found["score.spectral_norm.u"], table.weight_u, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("update, iterations", [("per_forward", 2), ("per_step", 1)])
def test_the_buffer_moves_as_often_as_it_says(arrays: dict[str, np.ndarray], update: str, iterations: int) -> None:
    """The original's rule, one iteration for each of the two evaluations, and once a step."""
    text = SPEC.replace("weight=spectral_norm", f'weight=spectral_norm(update="{update}")')
    before, after = (trained(load_text(text), arrays, n) for n in (STEPS - 1, STEPS))
    for i in range(3):
        matrix, u = before[f"score.layer[{i}].linear.weight"].T, before[f"score.layer[{i}].linear.spectral_norm.u"]
        for _ in range(iterations):
            v = matrix.T @ u
            v /= np.linalg.norm(v) + 1e-12
            u = matrix @ v
            u /= np.linalg.norm(u) + 1e-12
        np.testing.assert_allclose(after[f"score.layer[{i}].linear.spectral_norm.u"], u, rtol=1e-10)


def test_the_norm_comes_near_one(arrays: dict[str, np.ndarray]) -> None:
    (loss,) = [u.loss for u in program(load_text(SPEC)).updates]
    assert all(isinstance(b, Buffer) for b in loss.buffers) and len(loss.buffers) == 2
    found = trained(load_text(SPEC), arrays)
    for i in range(3):
        matrix, u = (found[f"score.layer[{i}].linear.{n}"] for n in ("weight", "spectral_norm.u"))
        assert np.linalg.norm(matrix @ u) == pytest.approx(np.linalg.norm(matrix, 2), rel=0.1)
