"""What each pass gains on each backend: the figures of GAINS in compiler/passes/pipeline.py.

    python -m tests.benchmarks.passes [--builds 9] [--rounds 5] [--only loss_head:xla:training ...]

A small Gemma-2-like model, or a field that renders images, runs with and without the pass, in turns within a
round, since a shared machine drifts; and both are built anew several times, since where a build's memory lies is
worth some per cent, too. One JSON line per row: the median over builds of (time without / time with), on the clock
and of processor time, each with its 95% bootstrap interval. A pass is used where the interval of processor time
lies above 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnxruntime

from planform.backends.onnx import Session, export
from planform.backends.xla import Policy, initialise, lower
from planform.compiler.elaborate import elaborate, elaborate_loss
from planform.compiler.ir import Graph, Input
from planform.compiler.parameters import initial
from planform.compiler.passes.base import Pass
from planform.compiler.passes.fixed_interpolation import FixedInterpolation
from planform.compiler.passes.known import known
from planform.compiler.passes.last import last_only
from planform.compiler.passes.local_attention import LocalAttention
from planform.compiler.passes.loss_head import LossHead
from planform.compiler.passes.map_first import MapFirst
from planform.compiler.passes.pack_qkv import PackQkv
from planform.compiler.passes.pipeline import CLEANUP
from planform.compiler.passes.residual_norm import ResidualNorm
from planform.compiler.passes.scale_query import ScaleQuery
from planform.compiler.passes.stateful import stateful
from planform.compiler.types import Dim, TensorType
from planform.runtime.data import grid
from planform.spec import load, load_text

from .ratios import interval

TRAINING = {"vocab": 8192, "d": 256, "layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 64, "ff": 1024,
            "window": 128, "query_scale": 64}  # fmt: skip
STEP = {**TRAINING, "d": 512, "ff": 2048, "head_dim": 128, "query_scale": 128, "layers": 6}
SHORT, LONG = (2, 1024), (1, 2048)  # batch, time
PROMPT, DECODED, ROOM = 128, 32, 512

Turn = Callable[[], None]
Make = Callable[[tuple[Pass, ...], Path], dict[str, Turn]]


def model(sizes: dict[str, int]) -> Any:
    return load("gemma2", "small", [f"{k}={v}" for k, v in sizes.items()])


def after(graph: Graph, passes: tuple[Pass, ...]) -> Graph:
    for p in passes:
        graph = p(graph)
    return graph


def xla_training(passes: tuple[Pass, ...], shape: tuple[int, int]) -> dict[str, Turn]:
    """One evaluation of the loss and its gradient."""
    spec = model(TRAINING)
    t = TensorType("i32", (Dim.parse("batch"), Dim.parse("time")))
    graph = after(elaborate_loss(spec, spec.train.values["loss"], {"tokens": t}), passes)
    policy = Policy()
    parameters = initialise(graph, policy, 0)
    f = lower(graph, policy)
    tokens = np.random.default_rng(0).integers(0, TRAINING["vocab"], shape).astype(np.int32)
    step = jax.jit(jax.value_and_grad(lambda p: f(p, {"tokens": tokens})["loss"]))
    return {"step": lambda: jax.block_until_ready(step(parameters))}


def onnx_step(passes: tuple[Pass, ...], folder: Path) -> dict[str, Turn]:
    """Reading a prompt; writing one token after another."""
    graph = elaborate(model(STEP), "lm")
    if not folder.exists():
        weights = initial(graph.parameters)
        step = last_only(after(stateful(graph), passes))
        export(step, weights.__getitem__, folder, max_positions=ROOM)
    session = Session(folder, spin=False)
    tokens = np.random.default_rng(0).integers(0, STEP["vocab"], (1, PROMPT)).astype(np.int32)

    def prefill() -> None:
        session.reset(1, ROOM)
        session.advance(tokens)

    def decode() -> None:
        session.reset(1, ROOM)
        logits = session.advance(tokens[:, :8])
        for _ in range(DECODED):
            logits = session.advance(logits.argmax(-1))

    return {"prefill": prefill, "decode": decode}


BETWEEN = """
planform: 1
extends: spatial_functa@cifar10
model: between
graphs:
  field:
    inputs: {latent: "float[batch, rows, columns, features]"}
    body: |
      z = latent >> sample_grid(coords, mode="linear")
      signal = coords >> sine_layer(z, start=siren_first, name="first") >> sine_layer(z) ^ (depth - 2)
               >> linear(channels, bias=true, init=siren(w0), name="out") + 0.5
"""


def onnx_field(passes: tuple[Pass, ...], folder: Path, spec: Any) -> dict[str, Turn]:
    """Images of one resolution from their latents."""
    graph = after(known(elaborate(spec, "field"), {"coords": grid(32, 32)}), passes)
    if not folder.exists():
        export(graph, initial(graph.parameters).__getitem__, folder, fixture=None)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    (latent,) = graph.of_kind(Input)
    given = {"latent": np.random.default_rng(0).normal(size=latent.type.shape({"batch": 16})).astype(np.float32)}
    return {"render": lambda: session.run(["signal"], given)}


ROWS: dict[str, tuple[Make, Pass]] = {
    "loss_head:xla:training": (lambda passes, _: xla_training(passes, SHORT), LossHead()),
    "local_attention:xla:training": (lambda passes, _: xla_training(passes, LONG), LocalAttention()),
    "pack_qkv:onnx:step": (onnx_step, PackQkv()),
    "scale_query:onnx:step": (onnx_step, ScaleQuery()),
    "residual_norm:onnx:step": (onnx_step, ResidualNorm()),
    "fixed_interpolation:onnx:training": (
        lambda passes, folder: onnx_field(passes, folder, load_text(BETWEEN, "between.yaml")),
        FixedInterpolation(),
    ),
    "map_first:onnx:training": (
        lambda passes, folder: onnx_field(passes, folder, load("spatial_functa", "cifar10", ["features=256"])),
        MapFirst(),
    ),
}


def seconds(turn: Turn) -> tuple[float, float]:
    """On the clock, and of the processors."""
    clock, cpu = time.perf_counter(), time.process_time()
    turn()
    return time.perf_counter() - clock, time.process_time() - cpu


def one_build(
    make: Make, p: Pass, rounds: int, folder: Path, flip: bool
) -> dict[str, list[tuple[float, float, float]]]:
    """For each part of the workload, (seconds with the pass, ratio on the clock, ratio of processor time) by round."""
    order = (1, 0) if flip else (0, 1)  # which side is made first may decide where its memory lies
    made = {k: make((*CLEANUP, p) if k else CLEANUP, folder / f"{p.name}-{k}") for k in order}
    out: dict[str, list[tuple[float, float, float]]] = {}
    for part in made[0]:
        for k in order:
            made[k][part]()
        for i in range(rounds):
            taken = {k: seconds(made[k][part]) for k in ((0, 1) if i % 2 else (1, 0))}
            clock, cpu = (taken[0][j] / taken[1][j] for j in (0, 1))
            out.setdefault(part, []).append((taken[1][0], clock, cpu))
    return out


def measure(name: str, builds: int, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """A row for each of the workload's parts."""
    make, p = ROWS[name]
    parts: dict[str, list[tuple[float, ...]]] = {}
    for i in range(builds):
        for part, samples in one_build(make, p, rounds, folder, bool(i % 2)).items():
            parts.setdefault(part, []).append(tuple(statistics.median(column) for column in zip(*samples)))
    out = []
    for part, medians in parts.items():
        taken, clock, cpu = (list(column) for column in zip(*medians))
        row: dict[str, Any] = {"row": name, "part": part, "seconds": round(statistics.median(taken), 4)}
        for kind, ratios in (("clock", clock), ("processor", cpu)):
            row[kind] = [round(x, 3) for x in interval(ratios)]
        out.append(row)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--builds", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.only:
            for row in measure(name, args.builds, args.rounds, Path(scratch)):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
