"""Depth is free to compile: a repetition is one region, and the default policy bounds what is unrolled."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import Any

from tests.benchmarks.ratios import interval
from tests.evidence import row

ROUNDS = 9
SIZE = ("vocab=16384", "window=128", "d=512", "heads=8", "kv_heads=4", "head_dim=64", "ff=2048", "query_scale=64")


def compile_seconds(layers: int) -> dict[str, float]:
    """Tracing, lowering and XLA compilation of the whole training step (loss, gradients, AdamW)."""
    import jax
    import jax.numpy as jnp
    import optax

    from planform.backends.xla import Policy, lower, storage
    from planform.compiler.passes.pipeline import optimise
    from planform.compiler.program import program
    from planform.spec import load

    update = program(load("gemma2", "small", [*SIZE, f"layers={layers}"])).updates[0]
    policy = Policy()
    graph = optimise(update.loss, "xla", "training")
    f = lower(graph, policy)
    tx = optax.adamw(1e-4)

    def step(params: Any, state: Any, batch: Any) -> Any:
        loss, grads = jax.value_and_grad(lambda p: f(p, batch)["loss"])(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = {k: jax.ShapeDtypeStruct(s.type.shape({}), jnp.float32) for k, s in storage(graph, policy).items()}
    state = jax.eval_shape(tx.init, params)
    batch = {k: jax.ShapeDtypeStruct((4, 256), jnp.int32) for k in ("tokens", "position", "document")}
    start = time.perf_counter()
    traced = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, batch)
    lowered = time.perf_counter()
    traced.compile()
    return {"trace": lowered - start, "compile": time.perf_counter() - lowered, "total": time.perf_counter() - start}


@row("main_job", "depth", "trace + XLA compile of the step: 96 layers at most 1.3 x 12 layers, default policy", 6)
def depth() -> tuple[Any, bool | str]:
    runs: dict[int, list[dict[str, float]]] = {12: [], 96: []}
    for _ in range(ROUNDS):
        for layers, found in runs.items():
            code = f"import json; from {__name__} import compile_seconds as c; print(json.dumps(c({layers})))"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    ratios = [deep["total"] / shallow["total"] for shallow, deep in zip(runs[12], runs[96])]
    median, low, high = interval(ratios)
    figure = {
        "ratio": round(median, 2),
        "interval": [round(low, 2), round(high, 2)],
        **{
            f"layers_{n}_s": {k: round(statistics.median(r[k] for r in found), 1) for k in found[0]}
            for n, found in runs.items()
        },
    }
    return figure, True if high <= 1.3 else False if low > 1.3 else "undecided"
