"""Distributional losses against rlax: projection on atoms, categorical TD learning, deterministic policy gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from planform.backends import xla
from planform.backends.reference import run
from planform.compiler.elaborate import elaborate, elaborate_loss
from planform.compiler.ir import Builder, Graph, Input
from planform.compiler.ops import OPS
from planform.compiler.types import Dim, TensorType
from planform.spec import load_text

rlax = pytest.importorskip("rlax")

ATOMS = np.linspace(-150, 150, 51)


def transitions() -> tuple[np.ndarray, np.ndarray]:
    """Rewards and discounts that hit atoms exactly, pass both ends, and end the episode (discount 0)."""
    rng = np.random.default_rng(0)
    rewards = np.array([0.0, 6.0, -12.0, 3.0, 0.1, 500.0, -500.0, 150.0, -150.0, 149.999999, 1e-7, 7.0])
    discounts = np.array([1.0, 1.0, 1.0, 0.0, 0.95, 1.0, 1.0, 0.0, 0.0, 0.99, 1.0, 0.5])
    return np.concatenate([rewards, rng.normal(0, 100, 50)]), np.concatenate([discounts, rng.random(50)])


def test_projection_is_rlax_s_and_keeps_the_mass() -> None:
    rewards, discounts = transitions()
    p = np.random.default_rng(1).dirichlet(np.full(51, 0.1), len(rewards))
    given = {"p": p, "z": ATOMS, "r": rewards, "d": discounts}
    t = TensorType("f32", (Dim("batch", len(p)), Dim("atoms", 51)))
    b = Builder("g")
    inputs = [b.add(Input(n, t.with_dims(t.dims[c]))) for n, c in
              (("p", slice(2)), ("z", slice(1, 2)), ("r", slice(1)), ("d", slice(1)))]  # fmt: skip
    graph = b.finish({"y": b.emit(OPS["project"](), *inputs)})
    found = run(graph, {}, given)["y"]
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(-1), 1, rtol=0, atol=1e-12)
    f = {k: v.astype(np.float32) for k, v in given.items()}
    made = np.asarray(xla.lower(graph, xla.Policy())({}, f, None, None)["y"])
    np.testing.assert_allclose(made, found, atol=1e-6)
    np.testing.assert_allclose(made.sum(-1), 1, rtol=0, atol=2e-6)
    moved = f["r"][:, None] + f["d"][:, None] * f["z"]
    want = [rlax.categorical_l2_project(x, q, f["z"]) for x, q in zip(moved, f["p"])]
    np.testing.assert_allclose(made, want, atol=1e-6)


SPEC = """
planform: 1
model: agent
dims: {atoms: 51, actions: 2, d: 5}
graphs:
  critic:
    inputs:
      observation: float[batch, d]
      action: float[batch, actions]
    body: |
      h = (observation >> linear(16)) + (action >> linear(16)) >> layer_norm(bias=true) >> tanh >> linear(8) >> elu
      logits = h >> linear(atoms, init=fan_in(1, 3))
      value = sum(softmax(logits) * linspace(-150, 150, atoms), atoms)
  step:
    inputs:
      now: float[batch, atoms]
      future: float[batch, atoms]
      reward: float[batch]
      discount: float[batch]
    body: |
      support = linspace(-150, 150, atoms)
      target = project(softmax(future), support, reward, discount)
      error = -sum(target * log_softmax(now), atoms)
train:
  data: arrays(observation, action)
  loss: |
    q = critic(observation, action).value
    slope = grad(q, action)
    slope = slope / maximum(sqrt(sum(square(slope), actions)), 1)
    mean(0.5 * square(stop(slope + action) - action))
  optimizer: adam(1e-4)
"""


def test_categorical_td_learning_is_rlax_s() -> None:
    rng = np.random.default_rng(2)
    given = {"now": rng.normal(size=(64, 51)) * 3, "future": rng.normal(size=(64, 51)) * 3,
             "reward": rng.normal(size=64) * 60, "discount": np.where(rng.random(64) < 0.2, 0.0, 0.95)}  # fmt: skip
    found = run(elaborate(load_text(SPEC), "step"), {}, given)["error"]
    f = {k: v.astype(np.float32) for k, v in given.items()}
    z = ATOMS.astype(np.float32)
    want = [rlax.categorical_td_learning(z, f["now"][i], f["reward"][i], f["discount"][i], z, f["future"][i])
            for i in range(64)]  # fmt: skip
    np.testing.assert_allclose(found, want, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("steepness", [1e-2, 1.0], ids=["within", "clipped"])
def test_the_policy_s_loss_is_rlax_s(steepness: float) -> None:
    """dq/da is taken inside the loss, clipped by its norm, and not differentiated again."""
    import jax

    spec = load_text(SPEC)
    critic = elaborate(spec, "critic")
    assert spec.train is not None
    graph = elaborate_loss(
        spec, spec.train.values["loss"], {v.name: v.type for v in critic.inputs if isinstance(v, Input)}
    )
    rng = np.random.default_rng(3)
    weights = {p.path: rng.normal(size=p.type.shape({})).astype(np.float32) for p in graph.parameters}
    last = next(n for n, w in weights.items() if w.shape == (8, 51))
    weights[last] *= steepness
    x, a = (rng.normal(size=(32, n)).astype(np.float32) for n in (5, 2))

    def runs(graph: Graph) -> Callable[..., Any]:
        step = jax.jit(xla.lower(graph, xla.Policy()))
        return lambda x, a: step(weights, {"observation": x, "action": a}, None, None)

    q = lambda a: runs(critic)(x, a)["value"]  # noqa: E731
    slopes = jax.grad(lambda a: q(a).sum())(a)
    assert (np.linalg.norm(slopes, axis=-1) > 1).any() == (steepness == 1)
    want = lambda a: jax.vmap(rlax.dpg_loss, in_axes=(0, 0, None))(a, slopes, 1.0).mean()  # noqa: E731
    mine = lambda a: runs(graph)(x, a)["loss"]  # noqa: E731
    for found, expected in zip(jax.value_and_grad(mine)(a), jax.value_and_grad(want)(a)):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
