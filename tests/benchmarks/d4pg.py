"""D4PG's learner by hand in JAX with rlax and optax, as acme writes it, and how fast ours is beside it; how fast an
actor is beside the bare environment with the same policy.

python -m tests.benchmarks.d4pg learner --seconds 60
python -m tests.benchmarks.d4pg actor --seconds 60
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rlax

from planform.backends.xla import Policy
from planform.compiler.ir import Input
from planform.compiler.parameters import initial
from planform.compiler.program import Program, program
from planform.compiler.types import TensorType
from planform.runtime.agents import play_of
from planform.runtime.agents.actor import Actor
from planform.runtime.agents.policy import Acting
from planform.runtime.data import Batch, Share
from planform.runtime.mesh import make_mesh, rules_of
from planform.runtime.trainer import Trainer
from planform.runtime.updates import Layout
from planform.spec import load

from .ratios import interval

Arrays = dict[str, Any]
ATOMS = np.linspace(-150, 150, 51, dtype=np.float32)


def _torso(p: Arrays, at: str, x: jax.Array) -> jax.Array:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    x = (x - mean) * jax.lax.rsqrt(var + 1e-5) * p[f"{at}.torso.layer_norm.scale"] + p[f"{at}.torso.layer_norm.bias"]
    x = jnp.tanh(x) @ p[f"{at}.torso.dense.linear.weight"] + p[f"{at}.torso.dense.linear.bias"]
    return jax.nn.elu(x)


def actor(p: Arrays, observation: jax.Array) -> jax.Array:
    x = _torso(p, "actor", observation @ p["actor.dense.linear.weight"] + p["actor.dense.linear.bias"])
    return jnp.tanh(x @ p["actor.linear.weight"] + p["actor.linear.bias"])


def critic(p: Arrays, observation: jax.Array, action: jax.Array) -> jax.Array:
    weight = jnp.concatenate([p["critic.seen.linear.weight"], p["critic.done.weight"]])
    x = jnp.concatenate([observation, action], -1) @ weight + p["critic.seen.linear.bias"]
    x = _torso(p, "critic", x)
    return x @ p["critic.dense.linear.weight"] + p["critic.dense.linear.bias"]


class ByHand:
    """The learner: parameters by logical name, two optimizers, targets that are copied every 100 steps."""

    def __init__(self, parameters: Arrays, every: int = 100) -> None:
        self.optimizer = optax.chain(optax.clip_by_global_norm(40.0), optax.adam(1e-4))
        online = {k: jnp.asarray(v) for k, v in parameters.items()}
        parts = [{k: v for k, v in online.items() if k.startswith(at)} for at in ("actor.", "critic.")]
        self.state: Any = (*parts, *jax.tree.map(jnp.copy, parts), *map(self.optimizer.init, parts), jnp.int32(0))
        self.step = jax.jit(lambda state, batch: self._step(state, batch, every), donate_argnums=0)

    def _step(self, state: Any, batch: Batch, every: int) -> Any:
        pi, q, slow_pi, slow_q, pi_state, q_state, steps = state

        def policy_loss(pi: Arrays) -> jax.Array:
            a = actor(pi, batch["next_observation"])
            value = lambda a, o: jax.nn.softmax(critic(q, o[None], a[None])[0]) @ ATOMS  # noqa: E731
            slope = jax.vmap(jax.grad(value))(a, batch["next_observation"])
            return jax.vmap(rlax.dpg_loss, in_axes=(0, 0, None))(a, slope, 1.0).mean()

        def critic_loss(q: Arrays) -> jax.Array:
            now = critic(q, batch["observation"], batch["action"])
            future = critic(slow_q, batch["next_observation"], actor(slow_pi, batch["next_observation"]))
            learn = jax.vmap(rlax.categorical_td_learning, in_axes=(None, 0, 0, 0, None, 0))
            return learn(ATOMS, now, batch["reward"], batch["discount"], ATOMS, future).mean()

        pi_value, pi_slope = jax.value_and_grad(policy_loss)(pi)
        q_value, q_slope = jax.value_and_grad(critic_loss)(q)
        pi_change, pi_state = self.optimizer.update(pi_slope, pi_state)
        q_change, q_state = self.optimizer.update(q_slope, q_state)
        pi, q = optax.apply_updates(pi, pi_change), optax.apply_updates(q, q_change)
        slow_pi, slow_q = rlax.periodic_update((pi, q), (slow_pi, slow_q), steps + 1, every)
        return (pi, q, slow_pi, slow_q, pi_state, q_state, steps + 1), {"actor": pi_value, "critic": q_value}


class Repeated:
    """A few batches of a program, over and over: a source for a learner alone. A process takes its share of each."""

    def __init__(self, p: Program, count: int = 8, share: Share | None = None) -> None:
        rng = np.random.default_rng(0)
        types = {v.name: v.type for u in p.updates for v in u.loss.of_kind(Input)}
        draw = {"action": lambda n: rng.uniform(-1, 1, n), "reward": lambda n: rng.uniform(0, 5, n),
                "discount": lambda n: np.where(rng.random(n) < 0.05, 0, 0.95)}  # fmt: skip

        def drawn(name: str, t: TensorType) -> np.ndarray:
            shape = (p.batch, *t.sizes[1:])
            if t.dtype == "u8":
                return rng.integers(0, 256, shape, np.uint8)
            return draw.get(name, rng.standard_normal)(shape).astype(np.float32)

        mine = share or Share(p.batch)
        rows = slice(mine.process * mine.local, (mine.process + 1) * mine.local)
        self.made = [{n: drawn(n, t)[rows] for n, t in types.items()} for _ in range(count)]

    def batch(self, step: int) -> Batch:
        return self.made[step % len(self.made)]

    def batches(self, start: int = 0) -> Iterator[Batch]:
        return map(self.batch, count(start))

    def heldout(self, count: int) -> Iterator[Batch]:
        return iter(())

    def describe(self) -> dict[str, Any]:
        return {"fingerprint": "repeated"}


def ours(model: str = "d4pg", devices: int = 1, *overrides: str) -> Trainer:
    """The learner of a spec, on batches that repeat."""
    p = program(load(model, None, overrides))
    return Trainer(p, Repeated(p), Layout(make_mesh({"data": devices}), rules_of(load(model)), Policy()))


def learner(seconds: float, steps: int) -> dict[str, Any]:
    """Steps a second of both learners at a batch of 256, in turn; each step takes its batch from the host."""
    mine = ours()
    batches = mine.data.batches()
    hand = ByHand(initial(w for u in mine.program.updates for w in u.loss.parameters))

    def run_ours() -> None:
        for _ in range(steps):
            made = mine._step(batches)
        jax.block_until_ready(made)

    def run_hand() -> None:
        for _ in range(steps):
            hand.state, made = hand.step(hand.state, next(batches))
        jax.block_until_ready(made)

    return paired({"ours": run_ours, "hand": run_hand}, seconds, steps)


def actors(seconds: float, steps: int) -> dict[str, Any]:
    """Steps a second of an actor and of the bare environment with the same policy and noise, in turn, one thread."""
    from dm_control import suite

    p = program(load("d4pg"))
    play = play_of(p)
    weights = initial(p.policy.weights)
    actor, acting, rng = Actor(play, (0,)), Acting(play.policy), np.random.default_rng(0)
    actor.load(weights)
    acting.load(weights)
    bare = suite.load(*play.environment.split(":"), task_kwargs={"random": 0})
    now = bare.reset()

    def run_ours() -> None:
        done = 0
        while done < steps:
            done += len(actor.gather()[0]["reward"])

    def run_bare() -> None:
        nonlocal now
        for _ in range(steps):
            if now.last():
                now = bare.reset()
            seen = np.concatenate([np.ravel(v) for v in now.observation.values()]).astype(np.float32)
            now = bare.step(np.clip(acting(seen) + 0.3 * rng.standard_normal(1), -1, 1))

    return paired({"ours": run_ours, "bare": run_bare}, seconds, steps)


def paired(runs: dict[str, Callable[[], None]], seconds: float, steps: int) -> dict[str, Any]:
    """Both in turn for so long: steps a second of each, ratio of the first to the second with its 95% interval."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            rates[name].append(steps / (time.perf_counter() - start))
    first, second = rates.values()
    middle, low, high = interval([a / b for a, b in zip(first, second)])
    told = {name: round(float(np.median(r)), 1) for name, r in rates.items()}
    return {**told, "ratio": round(middle, 3), "low": round(low, 3), "high": round(high, 3), "rounds": len(first)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.d4pg", description=__doc__)
    parser.add_argument("what", choices=["learner", "actor"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--steps", type=int, help="in a round")
    a = parser.parse_args()
    measure, steps = {"learner": (learner, 100), "actor": (actors, 2000)}[a.what]
    print(json.dumps(measure(a.seconds, a.steps or steps)))


if __name__ == "__main__":
    main()
