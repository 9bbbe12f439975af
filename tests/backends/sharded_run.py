"""Run in a process of its own with four host devices: one loss and its gradients on several meshes.

Prints one JSON line: for each mesh the largest relative difference from a single device, and how many
numbers of the largest parameter one device holds.
"""

from __future__ import annotations

import json

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tests.backends import xla_graphs

from planform.backends.xla import Policy, initialise, lower, shardings

MESHES = {
    "data=4": {"data": 4},
    "data=2 fsdp=2": {"data": 2, "fsdp": 2},
    "data=2 tensor=2": {"data": 2, "tensor": 2},
    "fsdp=2 tensor=2": {"fsdp": 2, "tensor": 2},
}


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    graph = xla_graphs.loss(layers=4)
    rules = [(r.dim, r.axes) for r in xla_graphs.spec().sharding]
    # Small chunks: the loss head scans over several of them on every mesh.
    policy = Policy(compute="f64", unroll=1, loss_bytes=512)
    tokens = xla_graphs.tokens(4, 12)

    def step(mesh: Mesh | None) -> tuple[dict[str, np.ndarray], int]:
        f = lower(graph, policy, mesh, rules)
        placed = shardings(graph, policy, mesh, rules) if mesh else None
        params = initialise(graph, policy, 0, placed)
        given = tokens
        if mesh:
            axes = tuple(a for a in ("data", "fsdp") if a in mesh.axis_names)
            given = jax.device_put(tokens, NamedSharding(mesh, PartitionSpec(axes)))
        loss, grads = xla_graphs.jit(jax.value_and_grad(lambda p, t: f(p, {"tokens": t})["loss"]))(params, given)
        largest = max(params.values(), key=lambda a: a.size)
        held = largest.addressable_shards[0].data.size
        return {"loss": np.asarray(loss), **{k: np.asarray(g) for k, g in grads.items()}}, held

    want, whole = step(None)
    found = {}
    for name, sizes in MESHES.items():
        mesh = Mesh(np.array(jax.devices()).reshape(tuple(sizes.values())), tuple(sizes))
        got, held = step(mesh)
        worst = max(float(np.max(np.abs(got[k] - want[k])) / np.max(np.abs(want[k]))) for k in want)
        found[name] = {"difference": worst, "share": held / whole}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
