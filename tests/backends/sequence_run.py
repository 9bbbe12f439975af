"""Run in a process of its own with eight host devices: sequences split over devices.

python -m tests.backends.sequence_run [NAME ..]

The cases are RecurrentGemma's loss on several meshes, and `run ..`, the recurrence alone by each of its runs. Prints
one JSON line: for each the largest relative difference from a single device of a result or a gradient, and what the
devices tell each other, {collective: {shape: how often}}.
"""

from __future__ import annotations

import json
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

DIMS = {"d": 16, "lru": 24, "layers": 4, "heads": 4, "head_dim": 8, "intermediate": 48, "vocab": 32, "window": 7}
CASES: dict[str, tuple[dict[str, int], int, Any]] = {
    # axes of the mesh, entries of a sequence, form of the recurrence
    "seq=8": ({"seq": 8}, 64, None),
    "data=2 seq=2 tensor=2": ({"data": 2, "seq": 2, "tensor": 2}, 64, "kernel"),
    "seq=4, uneven": ({"seq": 4}, 61, "associative"),
}
COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
RUNS = {"run sequential": Plain("sequential", True), "run associative": Plain("associative", True),
        "run kernel": Kernel(True, interpret=True)}  # fmt: skip

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


def mesh_of(axes: dict[str, int]) -> Mesh:
    devices = np.array(jax.devices()[: int(np.prod(list(axes.values())))])
    return Mesh(devices.reshape(tuple(axes.values())), tuple(axes))


def compiled(f: Any, *args: Any) -> Any:
    return jax.jit(f).lower(*args).compile({"xla_backend_optimization_level": 0})


def model(mesh: Mesh | None, time: int, form: Any) -> Found:
    """The loss and its gradient by every parameter."""
    spec = load("recurrentgemma", "small", [f"{k}={v}" for k, v in DIMS.items()])
    assert spec.train is not None
    types = {"tokens": TensorType("i32", (Dim.parse("batch"), Dim.parse("time")))}
    graph = optimise(elaborate_loss(spec, spec.train.values["loss"], types), "xla", "training")
    rules = [(r.dim, r.axes) for r in spec.sharding]
    policy = Policy(compute="f64", recurrence=form)
    f = lower(graph, policy, mesh, rules)
    params = initialise(graph, policy, 0, shardings(graph, policy, mesh, rules) if mesh else None)
    tokens = np.random.default_rng(0).integers(0, DIMS["vocab"], (4, time)).astype(np.int32)
    given = jax.device_put(tokens, NamedSharding(mesh, PartitionSpec())) if mesh else tokens
    step = compiled(jax.value_and_grad(lambda p, t: f(p, {"tokens": t})["loss"]), params, given)
    loss, grads = step(params, given)
    return {"loss": loss, **grads}, step.as_text()


def alone(mesh: Mesh | None, time: int, run: Run) -> Found:
    """h, what goes out and every gradient, of two documents."""
    shape = (2, time, 6)
    scan = Scan.of(run, mesh, (None, ("seq",), ("tensor",)), shape)
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


def main(names: list[str]) -> None:
    jax.config.update("jax_enable_x64", True)
    found = {}
    for name in names or [*RUNS, *CASES]:
        axes, time, given = CASES[name] if name in CASES else ({"seq": 4, "tensor": 2}, 24, RUNS[name])
        f: Any = model if name in CASES else alone
        got, text = f(mesh_of(axes), time, given)
        differences = [worst(got, f(None, time, given)[0])]
        if name in RUNS:  # and so many entries that they can't be shared evenly
            differences.append(worst(*(f(mesh, 21, given)[0] for mesh in (mesh_of(axes), None))))
        found[name] = {"difference": max(differences), "told": told(text)}
    print(json.dumps(found))


def worst(got: dict[str, Any], want: dict[str, Any]) -> float:
    return max(float(np.max(np.abs(got[k] - want[k])) / np.max(np.abs(want[k]))) for k in want)


if __name__ == "__main__":
    main(sys.argv[1:])
