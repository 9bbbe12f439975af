"""python -m tests.evidence.gemma2.symbolic SIZE MESH: a true size of Gemma 2 with nothing allocated, as one JSON line.

Checked with its mesh, counted, lowered to ONNX and to XLA, its parameters laid out over the mesh's devices.
"""

from __future__ import annotations

import json
import math
import resource
import sys

import numpy as np


def main() -> None:
    import jax
    from jax.sharding import AbstractMesh

    from planform.backends import onnx, xla
    from planform.compiler.check import check
    from planform.compiler.elaborate import elaborate
    from planform.compiler.parameters import count
    from planform.compiler.passes.pipeline import optimise
    from planform.runtime.exporting import step_graph
    from planform.spec import load

    spec, mesh = load("gemma2", sys.argv[1], ["train.batch=6144"]), json.loads(sys.argv[2])
    findings = [d.message for d in check(spec, mesh)]
    graph = elaborate(spec)

    def never(name: str) -> np.ndarray:
        raise AssertionError(f"{name} was allocated")

    model = onnx.lower(step_graph(graph)[0], never, max_positions=8192).model.graph
    exported = sum(
        math.prod(v.shape.numpy())
        for name, v in model.initializers.items()
        if v.shape is not None and not name.startswith(("constant", "rope"))
    )
    rules = [(r.dim, r.axes) for r in spec.sharding]
    training, policy = optimise(graph, "xla", "training"), xla.Policy()
    where = xla.shardings(training, policy, AbstractMesh(tuple(mesh.values()), tuple(mesh)), rules)
    shapes = {
        name: jax.ShapeDtypeStruct(s.type.shape({}), np.float32) for name, s in xla.storage(training, policy).items()
    }
    device = sum(4 * math.prod(where[name].shard_shape(s.shape)) for name, s in shapes.items())
    tokens = jax.ShapeDtypeStruct((1, 8192), np.int32)
    logits = jax.eval_shape(xla.lower(training, policy), shapes, {"tokens": tokens})["logits"]  # type: ignore[arg-type]
    found = {
        "findings": findings, "parameters": count(graph), "exported": exported, "onnx_nodes": len(model),
        "logits": list(logits.shape), "bytes_per_device": device,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
