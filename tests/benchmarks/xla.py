"""Measures the XLA backend's training step against the hand-written one, and what compiling it costs.

python -m tests.benchmarks.xla step --variants hand,ours,ours:unroll=1 --rounds 9
python -m tests.benchmarks.xla compile --layers 12,24,48,96
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from planform.backends.xla import Policy, initialise, lower
from planform.compiler.elaborate import elaborate_loss
from planform.compiler.ir import Graph
from planform.compiler.passes.loss_head import LossHead
from planform.compiler.types import Dim, TensorType
from planform.spec import load

from .hand_jax import Sizes, adamw, init, loss

SIZES = {
    "t40": Sizes(vocab=16384, d=512, layers=8, heads=8, kv=4, head_dim=64, ff=2048, window=128),
    "t40x2": Sizes(vocab=4096, d=512, layers=2, heads=8, kv=4, head_dim=64, ff=2048, window=128),
    "tiny": Sizes(vocab=1024, d=128, layers=2, heads=4, kv=2, head_dim=32, ff=256, window=64),
}


def graph_of(s: Sizes) -> Graph:
    dims = dict(vocab=s.vocab, d=s.d, layers=s.layers, heads=s.heads, kv_heads=s.kv, head_dim=s.head_dim, ff=s.ff,
                window=s.window, query_scale=s.head_dim)  # fmt: skip
    spec = load("models/gemma2.yaml", "small", [f"{k}={v}" for k, v in dims.items()])
    tokens = TensorType("i32", (Dim.parse("batch"), Dim.parse("time")))
    return LossHead()(elaborate_loss(spec, spec.train.values["loss"], {"tokens": tokens}))


def variant(name: str, s: Sizes, batch: int, time: int) -> tuple[Callable[..., Any], Any, Any]:
    """(train step, its state, its tokens)."""
    kind, _, options = name.partition(":")
    rng = np.random.default_rng(1)
    tokens = rng.integers(3, s.vocab, (batch, time + 1)).astype(np.int32)
    if kind == "hand":
        scan = options == "scan"
        params = jax.tree.map(jnp.asarray, init(s, scan))
        fn = functools.partial(loss, s, scan=scan)
    else:
        fields = dict(o.split("=") for o in options.split("+") if o)
        policy = Policy(**{k: int(v) if v.isdigit() else v for k, v in fields.items()})  # type: ignore[arg-type]
        graph = graph_of(s)
        params = initialise(graph, policy, 0)
        f = lower(graph, policy)
        fn = lambda p, t: f(p, {"tokens": t})["loss"]  # noqa: E731
        tokens = tokens[:, :-1]

    def step(state: Any, tokens: jax.Array) -> Any:
        params, m, v, n = state
        value, grads = jax.value_and_grad(fn)(params, tokens)
        return adamw(params, grads, m, v, n), value

    zeros = lambda: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
    return step, (params, zeros(), zeros(), jnp.zeros(())), jnp.asarray(tokens)


def compiled(name: str, s: Sizes, batch: int, length: int) -> dict[str, Any]:
    step, state, tokens = variant(name, s, batch, length)
    t0 = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=0).lower(state, tokens)
    t1 = time.perf_counter()
    run = lowered.compile()
    return dict(name=name, run=run, state=state, tokens=tokens, trace_s=t1 - t0, compile_s=time.perf_counter() - t1)


def interval(ratios: list[float], draws: int = 4000) -> tuple[float, float]:
    """95% bootstrap interval of the median."""
    picked = np.random.default_rng(0).choice(ratios, (draws, len(ratios)))
    low, high = np.percentile(np.median(picked, 1), [2.5, 97.5])
    return float(low), float(high)


def measure_steps(args: argparse.Namespace) -> None:
    s = SIZES[args.size]
    runs = [compiled(v, s, args.batch, args.time) for v in args.variants.split(",")]
    for r in runs:
        r["seconds"], r["cpu"], r["losses"] = [], [], []
        r["state"], value = r["run"](r["state"], r["tokens"])
        r["losses"].append(float(value))
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
        low, high = interval(ratios)
        cpu = statistics.median(a / b for a, b in zip(runs[0]["cpu"], r["cpu"]))
        out = dict(
            variant=r["name"],
            step_s=round(statistics.median(r["seconds"]), 3),
            best_s=round(min(r["seconds"]), 3),
            cpu_s=round(statistics.median(r["cpu"]), 3),
            speed=round(statistics.median(ratios), 3),
            interval=[round(low, 3), round(high, 3)],
            speed_cpu=round(cpu, 3),
            trace_s=round(r["trace_s"], 2),
            compile_s=round(r["compile_s"], 2),
            temp_mb=r["run"].memory_analysis().temp_size_in_bytes >> 20,
            loss=[round(r["losses"][0], 4), round(r["losses"][-1], 4)],
        )
        print(json.dumps(out), flush=True)


def measure_compile(args: argparse.Namespace) -> None:
    for name in args.variants.split(","):
        for layers in map(int, args.layers.split(",")):
            s = SIZES[args.size]
            r = compiled(name, Sizes(**{**s.__dict__, "layers": layers}), args.batch, args.time)
            print(
                json.dumps(
                    dict(
                        variant=name, layers=layers, trace_s=round(r["trace_s"], 2), compile_s=round(r["compile_s"], 2)
                    )
                ),
                flush=True,
            )


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("what", choices=["step", "compile"])
    p.add_argument("--size", default="t40", choices=SIZES)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--time", type=int, default=256)
    p.add_argument("--variants", default="hand,ours", help="hand, hand:scan, ours, ours:FIELD=VALUE+..")
    p.add_argument("--rounds", type=int, default=9)
    p.add_argument("--steps", type=int, default=1)
    p.add_argument("--layers", default="12,96")
    args = p.parse_args()
    (measure_steps if args.what == "step" else measure_compile)(args)


if __name__ == "__main__":
    main()
