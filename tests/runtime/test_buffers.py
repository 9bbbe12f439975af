"""Buffers through the trainer: batch norm against flax's, in parts, in bfloat16, on eight devices, resumed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tests.runtime.training import ROOT, digest

from planform.backends.xla import Policy, to_logical
from planform.compiler.parameters import initial
from planform.compiler.program import program
from planform.runtime.data import ArrayData, Share
from planform.runtime.evaluate import evaluate_run
from planform.runtime.mesh import make_mesh
from planform.runtime.run import parameters_of_run
from planform.runtime.train import train
from planform.runtime.trainer import Trainer
from planform.runtime.updates import Layout
from planform.spec import Spec, load_text

SPEC = """
planform: 1
model: norms
dims: {d: 6}
blocks:
  layer: linear(d) >> batch_norm(decay=0.8) >> tanh
graphs:
  tail:
    inputs:
      h: float[batch, d]
    body: y = h >> layer ^ 2 >> batch_norm(epsilon=0.01)
  f:
    inputs:
      x: float[batch, rows, d]
      label: int[batch]
    body: logits = x >> cycle([layer, tanh >> layer], 5) >> mean(rows) >> tail ^ 2 >> linear(3)
train:
  data: arrays(x, label)
  loss: cross_entropy(f(x, label).logits, label) + 0.1 * mean(square(f(2 * x, label).logits))
  optimizer: sgd(0.5)
  batch: 16
  steps: 6
  checkpoint: {every: 3}
"""
"""Norms in layers that repeat, in a graph that is called again and again, and all of them twice in a loss."""


def spec(*overrides: str) -> Spec:
    return load_text(SPEC.replace("arrays(x, label)", "arrays(x, label, heldout=0.2)"), overrides=overrides)


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(rng.normal(size=6), 3, (100, 4, 6))
    return {"x": x.astype(np.float32), "label": (np.abs(x[:, 0, 0]) % 3).astype(np.int32)}


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x: Any, training: bool) -> Any:
        x = nn.Dense(6, use_bias=False, name="linear", param_dtype=jnp.float64)(x)
        norm = nn.BatchNorm(momentum=0.8, use_fast_variance=False, name="batch_norm", param_dtype=jnp.float64)
        return jnp.tanh(norm(x, use_running_average=not training))


class Tail(nn.Module):
    @nn.compact
    def __call__(self, h: Any, training: bool) -> Any:
        for i in range(2):
            h = Layer(name=f"layer[{i}]")(h, training)
        norm = nn.BatchNorm(momentum=0.9, epsilon=0.01, use_fast_variance=False, name="batch_norm",
                            param_dtype=jnp.float64)  # fmt: skip
        return norm(h, use_running_average=not training)


class Model(nn.Module):
    def setup(self) -> None:
        self.layers = [Layer(name=f"layer[{i}]") for i in range(5)]
        self.tail = Tail(name="tail")
        self.linear = nn.Dense(3, use_bias=False, name="linear", param_dtype=jnp.float64)

    def __call__(self, x: Any, training: bool) -> Any:
        for i, layer in enumerate(self.layers):
            x = layer(jnp.tanh(x) if i % 2 else x, training)
        x = x.mean(1)
        for _ in range(2):
            x = self.tail(x, training)
        return self.linear(x)


NAMES = {"weight": "kernel", "variance": "var"}


def to_flax(values: dict[str, np.ndarray]) -> dict[str, Any]:
    """Flax's variables from ours."""
    found: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, array in values.items():
        *path, key = name.split(".")
        path = [p for p in path if p not in ("f", "layer")]  # `tanh >> layer` is a layer with a `layer` in it
        place = found["batch_stats" if key in ("mean", "variance") else "params"]
        for p in path:
            place = place.setdefault(p, {})
        place[NAMES.get(key, key)] = jnp.asarray(array, jnp.float64)
    return found


def flax_steps(values: dict[str, np.ndarray], batches: Iterator[Any], steps: int, parts: int) -> Any:
    """Flax's variables after the training of the spec, written out."""
    model, now = Model(), to_flax(values)

    def loss(params: Any, stats: Any, x: Any, label: Any) -> Any:
        logits, after = model.apply({"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"])
        again, after = model.apply({"params": params, **after}, 2 * x, True, mutable=["batch_stats"])
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
        return entropy + 0.1 * jnp.mean(again**2), after["batch_stats"]

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    params, stats = now["params"], now["batch_stats"]
    for _ in range(steps):
        batch, total = next(batches), None
        for part in range(parts):
            found, stats = gradient(params, stats, *(jnp.asarray(batch[n][part::parts]) for n in ("x", "label")))
            total = found if total is None else jax.tree.map(jnp.add, total, found)
        params = jax.tree.map(lambda p, g: p - 0.5 * g / parts, params, total)
    return {"params": params, "batch_stats": stats}


@pytest.mark.parametrize("parts", [1, 2])
def test_steps_are_those_of_flax(arrays: Any, double: None, parts: int) -> None:
    chosen = program(spec(f"train.accumulate={parts}"))
    data = ArrayData({n: a.astype(np.float64) if a.ndim > 1 else a for n, a in arrays.items()}, Share(16))
    with Trainer(chosen, data, Layout(make_mesh({"data": 1}), (), Policy(compute="f64"))) as trainer:
        trainer.run(6)
        mine = to_logical(trainer.state.parameters)
        measured = trainer.measure()["heldout_loss"]
    first = initial(chosen.updates[0].loss.weights)
    assert mine.keys() == first.keys()
    theirs = flax_steps(first, data.batches(0), 6, parts)
    for want, got in zip(jax.tree.leaves(theirs), jax.tree.leaves(to_flax(mine)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)
    moved = [n for n in mine if np.abs(mine[n] - first[n]).max() > 0.01]
    assert {n.rpartition(".")[2] for n in moved} == {"weight", "scale", "bias", "mean", "variance"}
    # What is held out is measured with the running statistics, and leaves them as they are.
    losses = []
    for batch in data.heldout(chosen.evaluate_batches):
        out, again = (Model().apply(theirs, jnp.asarray(k * batch["x"]), False) for k in (1, 2))
        entropy = optax.softmax_cross_entropy_with_integer_labels(out, jnp.asarray(batch["label"])).mean()
        losses.append(float(entropy + 0.1 * jnp.mean(again**2)))
    assert measured == pytest.approx(np.mean(losses), rel=1e-10)


@pytest.fixture(scope="module")
def saved(arrays: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("buffers") / "rows.npz"
    np.savez(path, **arrays)
    return path


def test_resumed_a_run_is_the_same_run(saved: Path, tmp_path: Path) -> None:
    train(spec(), tmp_path / "whole", files=saved, quiet=True)
    for steps in (3, 6):
        train(spec(), tmp_path / "parts", files=saved, steps=steps, quiet=True)
    whole, parts = (parameters_of_run(tmp_path / name) for name in ("whole", "parts"))
    assert "tail.layer[1].batch_norm.variance" in whole and digest(parts) == digest(whole)
    assert digest(parameters_of_run(tmp_path / "parts", 3)) != digest(whole)
    assert evaluate_run(tmp_path / "parts") == evaluate_run(tmp_path / "whole")


def test_statistics_stay_float32_in_bfloat16(arrays: Any) -> None:
    """Also of a graph that a repetition calls, whose carries are bfloat16 otherwise."""
    found = []
    for compute in ("f32", "bf16"):
        data = ArrayData(arrays, Share(16))
        with Trainer(program(spec()), data, Layout(make_mesh({"data": 1}), (), Policy(compute=compute))) as trainer:
            trainer.run(1)
            found.append(to_logical(trainer.state.parameters))
    for name, exact in found[0].items():
        got = found[1][name]
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, exact, rtol=0.02, atol=0.05)
        if name.endswith((".mean", ".variance")):
            coarse = got.astype(jnp.bfloat16).astype(np.float32)
            assert (got != coarse).mean() > 0.5


@pytest.mark.slow
def test_eight_devices_train_as_one(saved: Path, tmp_path: Path) -> None:
    """Statistics are those of the whole batch, wherever its rows are."""
    (tmp_path / "norms.yaml").write_text(SPEC + "\nsharding: {batch: data}\nprecision: {compute: float64}\n")
    found = []
    for mesh in ("data=1", "data=8"):
        command = [sys.executable, "-m", "planform", "train", str(tmp_path / "norms.yaml"), "--files", str(saved),
                   "--out", str(tmp_path / mesh), "--mesh", mesh, "--quiet"]  # fmt: skip
        path = {"PYTHONPATH": str(ROOT / ".pkg"), "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
        subprocess.run(command, check=True, env={**os.environ, **path}, timeout=300)
        found.append(parameters_of_run(tmp_path / mesh))
    for name, one in found[0].items():
        np.testing.assert_allclose(found[1][name], one, rtol=1e-10, atol=1e-12)
