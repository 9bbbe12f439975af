"""Measures the XLA backend's training step against the hand-written one, and what compiling it costs.

python -m tests.benchmarks.xla step --variants hand,ours,ours:unroll=1 --rounds 9
python -m tests.benchmarks.xla step --size rg-t40 --variants hand,hand:chunked,ours,deepmind:LINEAR_NATIVE
python -m tests.benchmarks.xla compile --layers 12,24,48,96
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from planform.backends.xla import Policy, initialise, lower, storage
from planform.compiler.elaborate import elaborate_loss
from planform.compiler.ir import Graph
from planform.compiler.passes.pipeline import optimise
from planform.compiler.types import Dim, TensorType
from planform.spec import load

from . import hand
from .hand.parts import adamw
from .ratios import interval
from .sizes import SIZES, Size


def graph_of(s: Size) -> Graph:
    """The training loss of a shipped spec in these sizes, as the trainer runs it."""
    spec = load(s.spec, "small", [f"{k}={v}" for k, v in s.dims.items()])
    assert spec.train is not None
    tokens = TensorType("i32", (Dim.parse("batch"), Dim.parse("time")))
    return optimise(elaborate_loss(spec, spec.train.values["loss"], {"tokens": tokens}), "xla", "training")


Step = Callable[..., Any]


def products(s: Size, batch: int, time: int) -> tuple[Step, Callable[[], Any], Any]:
    """What no step can do without, and nothing else: the products with its weights, forward and for both gradients,
    and those of attention, of each query with as many keys as it sees on average."""
    rows, shared = batch * time, s.heads // s.kv * time
    graph = graph_of(s)
    shapes: dict[str, Any] = {}
    for name, p in storage(graph, Policy()).items():
        dims = p.type.shape({})[p.stacked :]
        if len(dims) < 2 or "conv1d" in name:
            continue
        shape = dims
        if not name.endswith("_gate.weight"):  # those are products side by side, one a block
            # The first dim is summed over, but for the projection out of the heads: its last is d.
            inner = dims[0] * dims[1] if name.endswith("attention.out.weight") else dims[0]
            shape = (inner, int(np.prod(dims)) // inner)
        for one in p.logical:
            shapes[one] = jax.ShapeDtypeStruct(shape, jnp.float32)

    def make() -> Any:
        return {k: np.random.default_rng(0).standard_normal(v.shape, np.float32) * 0.02 for k, v in shapes.items()}

    def step(state: Any, tokens: jax.Array) -> Any:
        params, m, v, n = state
        value = jnp.zeros(())
        made = {}
        for i, window in enumerate(s.windows):
            keys = sum(min(t + 1, window or time) for t in range(time)) // time
            matrices = [(shared, s.head_dim), (keys, s.head_dim), (keys, s.head_dim), (shared, s.head_dim)]
            matrices += [(shared, keys), (shared, keys)]
            fill = (jnp.full((batch, s.kv, *m), 1e-3 * (i + j)) + tokens[0, 0] * 1e-9 for j, m in enumerate(matrices))
            q, k, v_, dy, p, dz = fill
            pt, dzt = p.swapaxes(-1, -2), dz.swapaxes(-1, -2)
            found = (q @ k.swapaxes(-1, -2), p @ v_, dy @ v_.swapaxes(-1, -2), pt @ dy, dz @ k, dzt @ q)
            value = value + sum(a.ravel()[0] for a in jax.lax.optimization_barrier(found))
        for i, (name, w) in enumerate(params.items()):
            *blocks, inner, outer = w.shape
            x = jnp.full((*blocks, rows, inner), 1e-3 * i) + tokens[0, 0] * 1e-9
            dy = jnp.full((*blocks, rows, outer), 2e-3 * i) + tokens[0, 1] * 1e-9
            found = jax.lax.optimization_barrier((x @ w, dy @ w.swapaxes(-1, -2), x.swapaxes(-1, -2) @ dy))
            value = value + found[0].ravel()[0] + found[1].ravel()[0]
            made[name] = found[2]
        return (params, made, v, n), value

    return step, make, shapes


def variant(name: str, s: Size, batch: int, time: int) -> tuple[Step, Callable[[], Any], Any]:
    """(train step, what makes its parameters, their shapes) of `hand[:FORM]`, `products`, `ours:FIELD=VALUE+..`,
    `deepmind[:SCAN]`."""
    kind, _, options = name.partition(":")
    if kind == "products":
        return products(s, batch, time)
    if kind == "hand":
        fn: Step = functools.partial(hand.of(s.spec).loss, s, form=options)
        make = functools.partial(hand.of(s.spec).init, s, options)
        shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, make()))
    elif kind == "deepmind":
        from .peers import deepmind

        fn, make = deepmind.training(s, options or deepmind.SCAN)
        shapes = jax.eval_shape(make)
    else:
        fields = dict(o.split("=") for o in options.split("+") if o)
        policy = Policy(**{k: int(v) if v.isdigit() else v for k, v in fields.items()})  # type: ignore[arg-type]
        graph = graph_of(s)
        make = functools.partial(initialise, graph, policy, 0)
        shapes = {n: jax.ShapeDtypeStruct(p.type.shape({}), jnp.float32) for n, p in storage(graph, policy).items()}
        f = lower(graph, policy)

        def fn(params: Any, tokens: jax.Array) -> jax.Array:
            return f(params, {"tokens": tokens[:, :-1]})["loss"]

    def step(state: Any, tokens: jax.Array) -> Any:
        params, m, v, n = state
        value, grads = jax.value_and_grad(fn)(params, tokens)
        return adamw(params, grads, m, v, n), value

    return step, make, shapes


def compiled(name: str, s: Size, args: argparse.Namespace, run: bool) -> dict[str, Any]:
    """The compiled step; with `run` its state and tokens too."""
    step, make, shapes = variant(name, s, args.batch, args.time)
    state = (shapes, shapes, shapes, jax.ShapeDtypeStruct((), jnp.float32))
    tokens = np.random.default_rng(1).integers(3, s.vocab, (args.batch, args.time + 1)).astype(np.int32)
    times = [(time.perf_counter(), time.process_time())]
    lowered = jax.jit(step, donate_argnums=0).lower(state, tokens)
    times.append((time.perf_counter(), time.process_time()))
    found: dict[str, Any] = {"name": name, "run": lowered.compile(), "tokens": jnp.asarray(tokens)}
    times.append((time.perf_counter(), time.process_time()))
    (w0, c0), (w1, c1), (w2, c2) = times
    found["cost"] = {
        "trace_s": round(w1 - w0, 2),
        "compile_s": round(w2 - w1, 2),
        "trace_cpu_s": round(c1 - c0, 2),
        "compile_cpu_s": round(c2 - c1, 2),
        "temp_mb": found["run"].memory_analysis().temp_size_in_bytes >> 20,
    }
    if run:
        params = jax.tree.map(jnp.asarray, make())
        zeros = functools.partial(jax.tree.map, jnp.zeros_like, params)
        found["state"] = (params, zeros(), zeros(), jnp.zeros(()))
    return found


def measure_steps(args: argparse.Namespace) -> None:
    """Rounds in which every variant makes some steps, in turn; speeds are relative to the first variant."""
    s = sized(args)[0]
    runs = [compiled(v, s, args, run=True) for v in args.variants.split(",")]
    for r in runs:
        r["seconds"], r["cpu"] = [], []
        r["state"], value = r["run"](r["state"], r["tokens"])
        r["losses"] = [float(value)]
    for i in range(args.rounds):
        for r in runs[i % len(runs) :] + runs[: i % len(runs)]:
            t, c = time.perf_counter(), time.process_time()
            for _ in range(args.steps):
                r["state"], value = r["run"](r["state"], r["tokens"])
                r["losses"].append(float(value))
            r["seconds"].append((time.perf_counter() - t) / args.steps)
            r["cpu"].append((time.process_time() - c) / args.steps)
    for r in runs:
        ratios = [a / b for a, b in zip(runs[0]["seconds"], r["seconds"])]
        median, low, high = interval(ratios)
        report(
            variant=r["name"],
            layers=s.layers,
            step_s=round(statistics.median(r["seconds"]), 3),
            best_s=round(min(r["seconds"]), 3),
            cpu_s=round(statistics.median(r["cpu"]), 3),
            speed=round(median, 3),
            interval=[round(low, 3), round(high, 3)],
            speed_cpu=round(statistics.median(a / b for a, b in zip(runs[0]["cpu"], r["cpu"])), 3),
            loss=[round(r["losses"][0], 4), round(r["losses"][-1], 4)],
            **r["cost"],
        )


def measure_compile(args: argparse.Namespace) -> None:
    for name in args.variants.split(","):
        for s in sized(args):
            report(variant=name, layers=s.layers, **compiled(name, s, args, run=False)["cost"])


def sized(args: argparse.Namespace) -> list[Size]:
    own = SIZES[args.size]
    return [replace(own, layers=int(n)) for n in args.layers.split(",")] if args.layers else [own]


def report(**row: Any) -> None:
    print(json.dumps(row), flush=True)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["step", "compile"])
    p.add_argument("--size", default="t40", choices=SIZES)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--time", type=int, default=256)
    p.add_argument("--variants", default="hand,ours", help="hand, hand:scan, products, ours, ours:FIELD=VALUE+.., ..")
    p.add_argument("--rounds", type=int, default=9)
    p.add_argument("--steps", type=int, default=1)
    p.add_argument("--layers", help="one number, for `compile` several: 12,96")
    args = p.parse_args()
    (measure_steps if args.what == "step" else measure_compile)(args)


if __name__ == "__main__":
    main()
