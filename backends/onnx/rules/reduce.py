"""Reductions over named dims."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from ..quantization.images import in_8_bits
from .registry import Emitter, Node, rule

_NAMES = {"sum": "ReduceSum", "mean": "ReduceMean", "max": "ReduceMax"}


@rule(*_NAMES)
def reduce(m: Emitter, node: Node, x: ir.Value) -> ir.Value:
    op: Any = node.op
    t = node.inputs[0].type
    axes = sorted(op.axes(t))
    if m.stands_turned(x) and axes == [1, 2]:
        x, axes = in_8_bits(m, m.turned(x)), [2, 3]
        if op.name == "mean" and t.dtype == node.output.type.dtype:
            # A pool of all cells takes an image in the layout that the runtime's convolutions give it.
            return m.reshape(m.op("GlobalAveragePool", x), node.output.type.sizes)
    x = m.cast(x, t.dtype, node.output.type.dtype)
    # Without axes ONNX reduces all of them; an op over none is the identity.
    return m.op(_NAMES[op.name], x, m.integers(*axes), keepdims=0) if axes else x
