"""Normalisations and activations: one kernel each."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from ..emitter import is_weight
from .registry import Emitter, Node, rule


def gain(m: Emitter, scale: ir.Value, offset: float) -> ir.Value:
    """offset + scale, added up when the file is written."""
    if not offset:
        return scale
    if is_weight(scale):
        assert scale.shape is not None
        return m.fold(f"+{offset:g}", scale.shape.numpy(), lambda a: a + a.dtype.type(offset), scale)
    return m.op("Add", scale, m.constant(offset))


@rule("rms_norm")
def rms_norm(m: Emitter, node: Node, x: ir.Value, scale: ir.Value) -> ir.Value:
    op: Any = node.op
    return m.op("RMSNormalization", x, gain(m, scale, op.offset), axis=-1, epsilon=op.eps)


@rule("add_rms_norm")
def add_rms_norm(m: Emitter, node: Node, x: ir.Value, y: ir.Value, scale: ir.Value) -> tuple[ir.Value, ir.Value]:
    op: Any = node.op
    if node.output.type.rank not in (2, 3):  # all that the kernel takes
        total = m.op("Add", x, y)
        return m.op("RMSNormalization", total, gain(m, scale, op.offset), axis=-1, epsilon=op.eps), total
    normed, mean, deviation, total = m.microsoft(
        "SkipSimplifiedLayerNormalization", x, y, gain(m, scale, op.offset), outputs=4, epsilon=op.eps
    )
    mean.name = deviation.name = ""  # for training, left out
    return normed, total


@rule("layer_norm")
def layer_norm(m: Emitter, node: Node, x: ir.Value, scale: ir.Value, bias: ir.Value | None = None) -> ir.Value:
    op: Any = node.op
    return m.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=op.eps)


@rule("softmax")
def softmax(m: Emitter, node: Node, x: ir.Value) -> ir.Value:
    return m.op("Softmax", x, axis=-1)


@rule("softcap")
def softcap(m: Emitter, node: Node, x: ir.Value) -> ir.Value:
    op: Any = node.op
    return m.op("Mul", m.op("Tanh", m.op("Mul", x, m.constant(1.0 / op.cap))), m.constant(op.cap))


@rule("gelu_tanh")
def gelu_tanh(m: Emitter, node: Node, x: ir.Value) -> ir.Value:
    return m.op("Gelu", x, approximate="tanh")


@rule("gelu")
def gelu(m: Emitter, node: Node, x: ir.Value) -> ir.Value:
    return m.op("Gelu", x)


@rule("silu")
def silu(m: Emitter, node: Node, x: ir.Value) -> ir.Value:
    return m.microsoft("QuickGelu", x, alpha=1.0)  # x * sigmoid(alpha * x)
