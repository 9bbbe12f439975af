"""Measures fitting and training fields on XLA against the same written by hand in JAX, as its users would: `vmap` over
images of a loop of `grad`. In fitting all images have the same points, and both sides use that.

python -m tests.benchmarks.functa step fit --model spatial_functa --width 128 --depth 6 --side 16
python -m tests.benchmarks.functa step --ours remat=false
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from planform.backends.xla import Policy, from_logical, lower
from planform.compiler.elaborate import elaborate_fit
from planform.compiler.parameters import initial
from planform.compiler.passes.known import known
from planform.compiler.passes.pipeline import optimise
from planform.compiler.program import program
from planform.runtime.data import grid
from planform.spec import load

from .ratios import interval

Arrays = dict[str, Any]
STEPS, CELLS, FEATURES, W0 = 3, 8, 16, 10.0


def overrides(model: str, width: int, depth: int) -> list[str]:
    """Dims with 1024 numbers a latent."""
    own = [f"rows={CELLS}", f"columns={CELLS}", f"features={FEATURES}"]
    return [f"width={width}", f"depth={depth}", "channels=3", f"w0={W0}",
            *(own if model == "spatial_functa" else [f"features={CELLS * CELLS * FEATURES}"])]  # fmt: skip


def by_hand(spatial: bool, depth: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(latents of images, the loss after fitting them), from parameters by logical name."""
    paths = ["field.first", *(f"field.sine_layer[{i}]" for i in range(depth - 2))]

    def field(p: Arrays, z: jax.Array, x: jax.Array) -> jax.Array:
        if spatial:
            cell = jnp.floor(x * CELLS).astype(jnp.int32)
            z, x = z[cell[:, 0], cell[:, 1]], x * CELLS - cell
        for at in paths:
            hidden = x @ p[f"{at}.hidden.weight"] + p[f"{at}.hidden.bias"]
            x = jnp.sin(W0 * (hidden + z @ p[f"{at}.shift.weight"] + p[f"{at}.shift.bias"]))
        return x @ p["field.out.weight"] + p["field.out.bias"] + 0.5

    def error(p: Arrays, z: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean((field(p, z, x) - y) ** 2)

    def latent(p: Arrays, x: jax.Array, y: jax.Array) -> jax.Array:
        rates = jnp.clip(p["inner.latent.rates"], 0, 1)
        z = jnp.zeros(rates.shape)
        for _ in range(STEPS):
            z = z - rates * jax.grad(error, 1)(p, z, x, y)
        return z

    def fit(p: Arrays, coords: jax.Array, signals: jax.Array) -> jax.Array:
        return jax.vmap(lambda y: latent(p, coords, y))(signals)  # the same points for all, so computed once

    def loss(p: Arrays, coords: jax.Array, signals: jax.Array) -> jax.Array:
        return jnp.mean(jax.vmap(lambda x, y: error(p, latent(p, x, y), x, y))(coords, signals))

    return fit, loss


def variants(what: str, a: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compiled functions of (coords, signals), theirs and ours, and what is known of each."""
    spec = load(a.model, "small", [*overrides(a.model, a.width, a.depth), *(f"train.inner.{o}" for o in a.ours)])
    (update,) = program(spec).updates
    assert update.inner is not None
    types = {v.name: v.type for v in update.loss.inputs if v.name in ("coords", "signal")}
    values = initial(update.loss.parameters)
    points = grid(a.side, a.side)
    found = update.loss if what == "step" else known(elaborate_fit(spec, update.inner, types), {"coords": points})
    graph = optimise(found, "xla", "training")
    f, stored = lower(graph, Policy()), from_logical(values.__getitem__, graph, Policy())
    fit, loss = by_hand(a.model == "spatial_functa", a.depth)
    if what == "step":
        ours = jax.value_and_grad(lambda p, x, y: f(p, {"coords": x, "signal": y})["loss"])
        hand: Any = jax.value_and_grad(loss)
    else:
        ours = lambda p, _, y: f(p, {"signal": y})["latent"]  # noqa: E731
        hand = fit
    rng = np.random.default_rng(0)
    signals = rng.uniform(size=(a.batch, *points.shape[:1], 3)).astype(np.float32)
    data = (np.broadcast_to(points, (a.batch, *points.shape)) if what == "step" else points, signals)
    made, told = {}, {}
    for name, function, parameters in (("hand", hand, jax.tree.map(jnp.asarray, values)), ("ours", ours, stored)):
        started = time.process_time()
        compiled = jax.jit(function).lower(parameters, *data).compile()
        memory = compiled.memory_analysis().temp_size_in_bytes / 1e6
        told[name] = {"compile_cpu_s": round(time.process_time() - started, 1), "temporary_mb": round(memory)}
        made[name] = lambda compiled=compiled, parameters=parameters: jax.block_until_ready(compiled(parameters, *data))
    return made, told


def measure(what: str, a: argparse.Namespace) -> dict[str, Any]:
    """Rounds in turn; speeds are ratios of times to the hand-written one, on the clock and of processor time."""
    made, told = variants(what, a)
    answers = {name: run() for name, run in made.items()}
    theirs, mine = (np.asarray(jax.tree.leaves(answers[n])[0]) for n in ("hand", "ours"))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
    for _ in range(a.rounds):
        for name, run in made.items():
            clock, cpu = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - clock, time.process_time() - cpu))
    ratios = [[h[i] / o[i] for h, o in zip(times["hand"], times["ours"])] for i in (0, 1)]
    for name, pairs in times.items():
        told[name]["ms"] = round(1e3 * statistics.median(t for t, _ in pairs), 1)
    speed, low, high = interval(ratios[0])
    return {
        "what": what, "model": a.model, "width": a.width, "depth": a.depth, "side": a.side, "batch": a.batch, **told,
        "speed": round(speed, 2), "interval": [round(low, 2), round(high, 2)],
        "by_processor_time": round(interval(ratios[1])[0], 2),
        "difference": float(np.max(np.abs(theirs - mine)) / np.max(np.abs(theirs))),
    }  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", nargs="+", choices=["step", "fit"])
    p.add_argument("--model", default="spatial_functa", choices=["functa", "spatial_functa"])
    p.add_argument("--width", type=int, default=128)
    p.add_argument("--depth", type=int, default=6)
    p.add_argument("--side", type=int, default=16)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--rounds", type=int, default=9)
    p.add_argument("--ours", nargs="*", default=[], metavar="KEY=VALUE", help="of the inner section")
    a = p.parse_args()
    for what in a.what:
        print(json.dumps(measure(what, a)), flush=True)


if __name__ == "__main__":
    main()
