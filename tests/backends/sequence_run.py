"""Run in a process of its own with eight host devices: sequences split over devices.

python -m tests.backends.sequence_run CASE ..

A case says what runs, the mesh and how many entries a sequence has: "hawk seq=4 time=64". What runs is a spec's loss on
packed documents, with `form=` the form of its recurrence, or one of `RUNS`, the recurrence alone. Prints one JSON line,
for each case

difference  the largest relative difference from a single device, of a result or a gradient
told        what the devices tell each other, {collective: {shape: how often}}
bytes       that one device holds of it in the end
"""

from __future__ import annotations

import json
import math
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from planform.backends.xla import Policy, initialise, lower, shardings
from planform.backends.xla.scans import FORGET, Kernel, Plain, Scan, decayed
from planform.backends.xla.scans.decayed import Run
from planform.compiler.elaborate import elaborate_loss
from planform.compiler.passes.pipeline import optimise
from planform.compiler.types import Dim, TensorType
from planform.spec import load

WIDTH = 24
DIMS = {
    "recurrentgemma": {"d": 16, "lru": WIDTH, "layers": 4, "heads": 4, "head_dim": 8, "intermediate": 48, "vocab": 32,
                       "window": 7},
    "hawk": {"d": 16, "lru": WIDTH, "layers": 2, "heads": 4, "blocks": 4, "ff": 48, "vocab": 32},
}  # fmt: skip
RUNS = {"sequential": Plain("sequential", True), "associative": Plain("associative", True),
        "kernel": Kernel(True, interpret=True)}  # fmt: skip
COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
SIZES = {"f64": 8, "f32": 4, "s64": 8, "s32": 4, "u32": 4, "pred": 1}

Found = tuple[dict[str, Any], str]
"""(results and gradients by name, the compiled program's text)."""


def told(text: str) -> dict[str, dict[str, int]]:
    """The collectives of a compiled program."""
    found: dict[str, dict[str, int]] = {}
    for shapes, kind in COLLECTIVE.findall(text):
        for shape in re.findall(r"\w+\[[\d,]*\]", shapes):
            found.setdefault(kind, {}).setdefault(shape, 0)
            found[kind][shape] += 1
    return found


def numbers(shape: str) -> list[int]:
    """The dims of a shape as XLA writes it."""
    return [int(n) for n in re.findall(r"\d+", shape.partition("[")[2])]


def size(shape: str) -> int:
    """Its bytes."""
    return SIZES[shape.partition("[")[0]] * math.prod(numbers(shape))


def mesh_of(axes: dict[str, int]) -> Mesh:
    devices = np.array(jax.devices()[: math.prod(axes.values())])
    return Mesh(devices.reshape(tuple(axes.values())), tuple(axes))


def compiled(f: Any, *args: Any) -> Any:
    return jax.jit(f).lower(*args).compile({"xla_backend_optimization_level": 0})


def packed(time: int) -> dict[str, np.ndarray]:
    """Four rows of documents: one, short ones that begin and end anywhere, one from each eighth's first entry and from
    its last, so at every device's edge."""
    starts = (
        [0],
        [0, 1, time // 3, time // 2 + 3],
        range(0, time, time // 8),
        [0, *range(time // 8 - 1, time, time // 8)],
    )
    first = np.zeros((4, time), np.int32)
    for row, at in zip(first, starts):
        row[list(at)] = 1
    last = np.maximum.accumulate(first * np.arange(time, dtype=np.int32), 1)
    tokens = np.random.default_rng(0).integers(0, 32, (4, time)).astype(np.int32)
    return {
        "tokens": tokens,
        "position": np.arange(time, dtype=np.int32) - last,
        "document": np.cumsum(first, 1, np.int32),
    }


def model(name: str, mesh: Mesh | None, time: int, form: Any) -> Found:
    """The loss and its gradient by every parameter."""
    spec = load(name, "small", [f"dims.{k}={v}" for k, v in DIMS[name].items()])
    assert spec.train is not None
    types = {"tokens": TensorType("i32", (Dim.parse("batch"), Dim.parse("time")))}
    graph = optimise(elaborate_loss(spec, spec.train.values["loss"], types), "xla", "training")
    rules = [(r.dim, r.axes) for r in spec.sharding]
    policy = Policy(compute="f64", recurrence=form)
    f = lower(graph, policy, mesh, rules)
    params = initialise(graph, policy, 0, shardings(graph, policy, mesh, rules) if mesh else None)
    given: Any = packed(time)
    if mesh:
        given = jax.device_put(
            given, NamedSharding(mesh, PartitionSpec(None, "seq" if time % mesh.shape["seq"] == 0 else None))
        )
    step = compiled(jax.value_and_grad(lambda p, given: f(p, given)["loss"]), params, given)
    loss, grads = step(params, given)
    return {"loss": loss, **grads}, step.as_text()


def alone(run: Run, mesh: Mesh | None, time: int) -> Found:
    """h, what goes out and every gradient, of two documents."""
    shape = (2, time, 6)
    scan = Scan.of(run, mesh, (None, ("seq",), ("tensor",) if mesh and "tensor" in mesh.shape else ()), shape)
    rng = np.random.default_rng(0)
    log_a = -np.exp(rng.uniform(-5, 1, shape))
    log_a[0, 7] = FORGET
    args = [jnp.asarray(x) for x in (rng.standard_normal(shape), log_a, rng.standard_normal((2, 6)))]
    slopes = (jnp.asarray(rng.standard_normal(shape)), jnp.asarray(rng.standard_normal((2, 6))))

    def f(*args: jax.Array) -> Any:
        found, back = jax.vjp(lambda *args: decayed(scan, *args), *args)
        return [*found, *back(slopes)]

    step = compiled(f, *args)
    return dict(zip(["h", "last", "x", "log a", "before"], step(*args))), step.as_text()


def run(case: str) -> dict[str, Any]:
    what, *words = case.split()
    given: dict[str, str] = dict(w.split("=", 1) for w in words)
    time, form = int(given.pop("time")), given.pop("form", None)
    mesh = mesh_of({axis: int(n) for axis, n in given.items()})

    def found(mesh: Mesh | None) -> Found:
        return alone(RUNS[what], mesh, time) if what in RUNS else model(what, mesh, time, form)

    (got, text), (want, _) = found(mesh), found(None)
    said = told(text)
    held = sum(n * size(shape) for shapes in said.values() for shape, n in shapes.items())
    return {"difference": worst(got, want), "told": said, "bytes": held}


def worst(got: dict[str, Any], want: dict[str, Any]) -> float:
    return max(float(np.max(np.abs(got[k] - want[k])) / np.max(np.abs(want[k]))) for k in want)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    print(json.dumps({case: run(case) for case in sys.argv[1:]}))
