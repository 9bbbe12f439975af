"""Run in a process of its own, with libtpu and without a TPU: compiles ahead of time for TPUs.

python -m tests.backends.tpu_run CASE ..

A case is a topology and what is compiled for it: "v5e:2x2 kernel", the recurrence alone with its gradient on one chip,
or "v5e:4x4 fsdp=16 batch=16 time=2048", a whole training step of RecurrentGemma 2b in bfloat16 on that mesh, its layers
recomputed; `form=` is the form of its recurrence and `size=` another size. Prints one JSON line, for each case

seconds     to compile, after tracing
kernels     how often the compiled program calls each kernel, by name
gib         of one chip: what goes in, is held in between, and comes out (what is updated in place counts as in)
told        as `sequence_run`
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, SingleDeviceSharding

from planform.backends.xla import Policy
from planform.backends.xla.policy import DTYPES
from planform.backends.xla.scans import Kernel, Scan, decayed
from planform.compiler.program import program
from planform.runtime.mesh import rules_of
from planform.runtime.updates import Layout, Updates
from planform.spec import load

from .sequence_run import told

SHAPE = (4, 2048, 2560)


def kernel(devices: Any) -> Any:
    """The recurrence and its gradient in bfloat16, not compiled yet."""
    place = SingleDeviceSharding(devices[0])
    x = jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16, sharding=place)
    before = jax.ShapeDtypeStruct((SHAPE[0], SHAPE[2]), jnp.float32, sharding=place)

    def f(x: jax.Array, log_a: jax.Array, before: jax.Array, dh: jax.Array) -> Any:
        found, back = jax.vjp(lambda *args: decayed(Scan(Kernel(True)), *args), x, log_a, before)
        return found, back((dh, jnp.zeros_like(before)))

    return jax.jit(f).lower(x, x, before, x)


def step(devices: Any, axes: dict[str, int], batch: int, length: int, size: str, form: Any) -> Any:
    """A training step, not compiled yet."""
    mesh = Mesh(np.array(devices[: math.prod(axes.values())]).reshape(tuple(axes.values())), tuple(axes))
    spec = load("recurrentgemma", size, [f"train.data=text(tokens, length={length})", f"train.batch={batch}"])
    policy = Policy(platform="tpu", compute="bf16", remat="layer", recurrence=form)
    updates = Updates(program(spec), Layout(mesh, rules_of(spec), policy))
    one = updates.each[0]
    params = {
        name: jax.ShapeDtypeStruct(s.type.shape({}), DTYPES[policy.stored], sharding=updates.shardings[name])
        for name, s in updates.storage.items()
    }
    state = one.initial.lower({name: params[name] for name in one.trained}).out_info
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=one.inputs["tokens"])
    given = dict.fromkeys(("tokens", "position", "document"), tokens)
    return one.step.lower(params, state, given, jax.ShapeDtypeStruct((), jnp.int32), {})


def kernels(text: str) -> dict[str, int]:
    """How often a compiled program calls each of the recurrence's kernels."""
    calls = re.findall(r"%(\S*) = [^\n]*custom_call_target=\"tpu_custom_call\"", text)
    return dict(Counter("".join(re.findall("linear_recurrence(?:_gradient)?", name)) or name for name in calls))


def run(case: str) -> dict[str, Any]:
    topology, *words = case.split()
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    if words == ["kernel"]:
        lowered = kernel(devices)
    else:
        given = dict(w.split("=", 1) for w in words)
        batch, length = int(given.pop("batch")), int(given.pop("time"))
        size, form = given.pop("size", "2b"), given.pop("form", None)
        lowered = step(devices, {axis: int(n) for axis, n in given.items()}, batch, length, size, form)
    start = time.monotonic()
    made = lowered.compile()
    seconds = time.monotonic() - start
    m, text = made.memory_analysis(), made.as_text()
    made_new = m.output_size_in_bytes - m.alias_size_in_bytes
    gib = {"in": m.argument_size_in_bytes, "between": m.temp_size_in_bytes, "out": made_new}
    return {
        "seconds": round(seconds, 1),
        "kernels": kernels(text),
        "gib": {name: round(n / 2**30, 3) for name, n in gib.items()},
        "told": told(text),
    }


if __name__ == "__main__":
    print(json.dumps({case: run(case) for case in sys.argv[1:]}))
