"""Training programs of several updates: in order, at once, with slow copies; each against NumPy's arithmetic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from tests.runtime.training import digest

from planform.backends.reference import run as reference
from planform.backends.xla import Policy, to_logical
from planform.compiler.graphs import graph_named
from planform.compiler.program import program
from planform.runtime.data import ArrayData, Share
from planform.runtime.exporting import export_run
from planform.runtime.mesh import make_mesh
from planform.runtime.run import parameters_of_run, spec_of_run
from planform.runtime.train import train
from planform.runtime.trainer import Trainer
from planform.runtime.updates import Layout
from planform.spec import load_text

pytestmark = pytest.mark.usefixtures("double")

SPEC = """
planform: 1
model: pair
dims: {d: 4, noise: 3}
blocks:
  layer: linear(d) >> tanh
graphs:
  generator:
    inputs:
      z: float[batch, noise]
    body: image = z >> linear(d) >> layer ^ 3 >> batch_norm
  discriminator:
    inputs:
      x: float[batch, d]
    body: score = x >> layer ^ 3 >> batch_norm(decay=0.7) >> linear(1)
train:
  data: arrays(x, heldout=0.2)
  targets:
    slow: ema(generator, decay=0.75)
    still: copy(discriminator, every=2)
  updates:
    generator:
      params: generator
      sample:
        z: normal[2 * batch, noise]
      loss: mean(square(discriminator(generator(z).image).score - 1)) + 0.1 * mean(still(slow(z).image).score)
      optimizer: sgd(0.1)
    discriminator:
      params: discriminator
      repeat: 3
      sample:
        z: normal[batch, noise]
      loss: |
        mean(square(discriminator(x).score - 1)) + mean(square(discriminator(generator(z).image).score))
        + mean(square(still(x).score))
      optimizer: adam(0.01, b1=0, b2=0.9)
  batch: 8
  steps: 4
  checkpoint: {every: 2}
"""


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(0).normal(1, 2, (100, 4))


def after(rows: np.ndarray, steps: int, text: str = SPEC, **fields: Any) -> dict[str, np.ndarray]:
    """Weights by logical name after some steps."""
    chosen = replace(program(load_text(text)), **fields)
    layout = Layout(make_mesh({"data": 1}), (), Policy(compute="f64"))
    with Trainer(chosen, ArrayData({"x": rows}, Share(8)), layout) as trainer:
        if steps:
            trainer.run(steps)
        return to_logical(trainer.state.parameters)


def of(weights: dict[str, np.ndarray], graph: str) -> dict[str, np.ndarray]:
    return {n.removeprefix(f"{graph}."): a for n, a in weights.items() if n.startswith(f"{graph}.")}


def buffer(name: str) -> bool:
    return name.endswith((".mean", ".variance"))


def test_copies_start_as_their_graphs_and_follow_them(rows: np.ndarray) -> None:
    states = [after(rows, n) for n in range(5)]
    for name, array in of(states[0], "generator").items():
        want = array
        np.testing.assert_array_equal(states[0][f"slow.generator.{name}"], array)
        for now in states[1:]:
            source = now[f"generator.{name}"]
            want = source if buffer(name) else 0.75 * want + 0.25 * source
            np.testing.assert_allclose(now[f"slow.generator.{name}"], want, rtol=1e-12, atol=1e-15)
            assert np.abs(source - array).max() > 1e-4
    for n, now in enumerate(states):
        for name, array in of(states[n - n % 2], "discriminator").items():
            np.testing.assert_array_equal(now[f"still.discriminator.{name}"], array)


def test_each_update_trains_its_own_and_moves_every_buffer(rows: np.ndarray) -> None:
    both = program(load_text(SPEC)).updates
    first = after(rows, 0)
    for place, graph, other in ((0, "generator", "discriminator"), (1, "discriminator", "generator")):
        now = after(rows, 1, updates=both[place : place + 1])
        moved = {n for n in now if not n.startswith(("slow", "still")) and not np.array_equal(now[n], first[n])}
        assert {n for n in moved if not buffer(n)} == {n for n in first if n.startswith(f"{graph}.") and not buffer(n)}
        assert {n for n in moved if buffer(n)} == {
            n for n in first if buffer(n) and n.startswith((f"{graph}.", f"{other}."))
        }


AT_ONCE = """
planform: 1
model: at_once
dims: {d: 4}
graphs:
  actor:
    inputs:
      x: float[batch, d]
    body: action = x >> linear(d) >> batch_norm(decay=0.5)
  critic:
    inputs:
      x: float[batch, d]
      action: float[batch, d]
    body: q = sum(square(x >> linear(d) + tanh(action)), d)
train:
  data: arrays(x, heldout=0.2)
  simultaneous: true
  updates:
    critic:
      params: critic
      loss: mean(square(critic(x, actor(x).action).q - 1))
      optimizer: sgd(0.1)
    actor:
      params: actor
      loss: |
        a = actor(x).action
        g = grad(critic(x, a).q, a)
        0.5 * mean(square(stop(a - g) - a))
      optimizer: sgd(0.2)
  batch: 8
  steps: 3
"""


def test_simultaneous_updates_start_from_the_same_parameters(rows: np.ndarray) -> None:
    """The gradient of half the square distance to a - dq/da is dq/da through a."""
    batches = ArrayData({"x": rows}, Share(8)).batches(0)
    first, want = after(rows, 0, AT_ONCE), {}
    now = {n: jnp.asarray(a, jnp.float64) for n, a in first.items()}

    def act(p: Any, x: Any) -> Any:
        y = x @ p["actor.linear.weight"]
        mean, variance = y.mean(0), y.var(0)
        y = (y - mean) / jnp.sqrt(variance + 1e-5) * p["actor.batch_norm.scale"] + p["actor.batch_norm.bias"]
        return y, mean, variance

    def q(p: Any, x: Any, a: Any) -> Any:
        return jnp.sum((x @ p["critic.linear.weight"] + jnp.tanh(a)) ** 2, -1)

    for _ in range(3):
        x = jnp.asarray(next(batches)["x"])
        critic = jax.grad(lambda p, x=x: jnp.mean((q(p, x, act(p, x)[0]) - 1) ** 2))(now)
        slope = jax.grad(lambda a, p=now, x=x: jnp.sum(q(p, x, a)))(act(now, x)[0])
        actor = jax.grad(lambda p, x=x, slope=slope: jnp.mean(act(p, x)[0] * slope))(now)
        _, mean, variance = act(now, x)
        want = {n: a - 0.1 * critic[n] if n.startswith("critic") else a - 0.2 * actor[n] for n, a in now.items()}
        for name, found in (("mean", mean), ("variance", variance)):  # both updates evaluate the actor
            one = 0.5 * (now[f"actor.batch_norm.{name}"] + found)
            want[f"actor.batch_norm.{name}"] = 0.5 * (one + found)
        now = want
    for name, array in after(rows, 3, AT_ONCE).items():
        np.testing.assert_allclose(array, want[name], rtol=1e-10, atol=1e-13)
        assert np.abs(array - first[name]).max() > 1e-3
    apart = after(rows, 3, AT_ONCE, simultaneous=False)
    assert np.abs(apart["actor.linear.weight"] - want["actor.linear.weight"]).max() > 1e-4


@pytest.fixture(scope="module")
def saved(rows: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("programs") / "rows.npz"
    np.savez(path, x=rows.astype(np.float32))
    return path


def test_resumed_a_run_is_the_same_run(saved: Path, tmp_path: Path) -> None:
    for name, stops in (("whole", (4,)), ("parts", (2, 4))):
        for steps in stops:
            train(load_text(SPEC), tmp_path / name, files=saved, steps=steps, quiet=True)
    whole, parts = (parameters_of_run(tmp_path / name) for name in ("whole", "parts"))
    assert "slow.generator.batch_norm.mean" in whole and digest(parts) == digest(whole)


def test_a_slow_copy_is_a_graph_of_the_run(saved: Path, tmp_path: Path) -> None:
    """By its name in the program: to run, and to export."""
    train(load_text(SPEC), tmp_path / "run", files=saved, steps=2, quiet=True)
    spec, weights = spec_of_run(tmp_path / "run"), parameters_of_run(tmp_path / "run")
    z = np.random.default_rng(0).normal(size=(5, 3))
    slow = reference(graph_named(spec, "slow"), weights, {"z": z})["image"]
    own = {n.removeprefix("slow."): a for n, a in weights.items() if n.startswith("slow.")}
    np.testing.assert_array_equal(slow, reference(graph_named(spec, "generator"), own, {"z": z})["image"])
    assert np.abs(slow - reference(graph_named(spec, "generator"), weights, {"z": z})["image"]).max() > 1e-3
    export_run(tmp_path / "run", tmp_path / "onnx", graph="slow")
    session = onnxruntime.InferenceSession(next((tmp_path / "onnx").glob("*.onnx")))
    (made,) = session.run(None, {"z": z.astype(np.float32)})
    np.testing.assert_allclose(made, slow, atol=1e-5)


DRAWS = """
planform: 1
model: draws
dims: {d: 4}
graphs:
  a:
    inputs:
      z: float[batch, d]
      x: float[batch, d]
    body: y = z >> linear(1, init=zeros)
  b:
    inputs:
      z: float[batch, d]
    body: y = z >> linear(1, init=zeros)
train:
  data: arrays(x, heldout=0.2)
  updates:
    one:
      params: a
      sample:
        z: normal[3 * batch, d]
      loss: mean(a(z, x).y)
      optimizer: sgd(1)
    two:
      params: b
      sample:
        z: normal[3 * batch, d]
      loss: mean(b(z).y)
      optimizer: sgd(1)
  batch: 8
  steps: 4
"""


def test_every_update_draws_anew(rows: np.ndarray) -> None:
    """The gradient of the mean of z w is the mean of z."""
    states = [after(rows, n, DRAWS) for n in range(4)]
    steps = [{n: now[n] - before[n] for n in now} for before, now in zip(states, states[1:])]
    drawn = [s["b.linear.weight"] for s in steps] + [s["a.linear.weight"] for s in steps]
    assert all(0.01 < np.abs(a).max() < 2 for a in drawn)
    for i, a in enumerate(drawn):
        assert not any(np.allclose(a, b) for b in drawn[:i])
    assert np.std(drawn) == pytest.approx(24**-0.5, rel=0.5)  # means of 24 rows
