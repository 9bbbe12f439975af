"""Changes of shape."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from .registry import Emitter, Node, rule


@rule("rearrange")
def rearrange(m: Emitter, node: Node, x: ir.Value) -> ir.Value:
    op: Any = node.op
    t, out = node.inputs[0].type, node.output.type
    split, order, _ = op.plan(t)
    sizes = tuple(d.size for d in split)
    x = m.transpose(x if sizes == t.sizes else m.reshape(x, sizes), order)
    return x if tuple(sizes[i] for i in order) == out.sizes else m.reshape(x, out.sizes)
