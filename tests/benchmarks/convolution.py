"""Measures convolutions, pools and batch norms of ResNet-50 on this machine's processor: in the forms that the XLA
backend takes for CPUs, and in those that it takes elsewhere, XLA's own; in turn.

python -m tests.benchmarks.convolution --batch 8 --rounds 9
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import jax
import numpy as np

from planform.backends.xla import Policy, lower
from planform.compiler.elaborate import elaborate
from planform.compiler.parameters import sample
from planform.spec import load_text

SHAPES = {
    "conv2d(256, 1)": (56, 64), "conv2d(64, 1)": (56, 256), "conv2d(512, 1, stride=2)": (56, 256),
    "conv2d(1024, 1)": (14, 256), "conv2d(512, 1)": (7, 2048), "max_pool(3, stride=2)": (112, 64),
}  # fmt: skip


def measure(expression: str, batch: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of the result, and of all gradients with it, medians of rounds in turn; largest difference."""
    side, channels = SHAPES[expression]
    text = f"""
planform: 1
model: one
graphs:
  g:
    inputs:
      x: float[batch, {side}, {side}, {channels}]
    body: y = x >> {expression}
"""
    graph, rng = elaborate(load_text(text, "one.yaml"), "g"), np.random.default_rng(0)
    weights = {p.path: sample(p.init, p.type.shape({}), 0, p.path) for p in graph.parameters}
    x = rng.standard_normal((batch, side, side, channels)).astype(np.float32)
    made: dict[tuple[str, str], Any] = {}
    for platform in ("cpu", "gpu"):
        f = lower(graph, Policy(platform=platform))
        forward = jax.jit(lambda p, x, f=f: f(p, {"x": x})["y"])
        above = rng.standard_normal(forward(weights, x).shape).astype(np.float32)
        back = jax.jit(lambda p, x, f=f, above=above: jax.vjp(lambda p, x: f(p, {"x": x})["y"], p, x)[1](above))
        made[platform, "forward"], made[platform, "gradients"] = forward, back
    times: dict[tuple[str, str], list[float]] = {k: [] for k in made}
    for _ in range(rounds + 1):
        for key, run in made.items():
            start = time.perf_counter()
            jax.block_until_ready(run(weights, x))
            times[key].append(time.perf_counter() - start)
    told: dict[str, Any] = {"op": expression, "of": [batch, side, side, channels]}
    for what in ("forward", "gradients"):
        ms = {p: 1e3 * statistics.median(times[p, what][1:]) for p in ("cpu", "gpu")}
        told[what] = {"ours_ms": round(ms["cpu"], 1), "xla_ms": round(ms["gpu"], 1)}
    pair = [np.asarray(made[p, "forward"](weights, x)) for p in ("cpu", "gpu")]
    return {**told, "difference": float(np.max(np.abs(pair[0] - pair[1])) / np.max(np.abs(pair[1])))}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--rounds", type=int, default=9)
    a = p.parse_args()
    for expression in SHAPES:
        print(json.dumps(measure(expression, a.batch, a.rounds)), flush=True)


if __name__ == "__main__":
    main()
