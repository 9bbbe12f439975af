"""Elementwise ops. Operands are cast to their common dtype and laid out by name before they meet."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from planform.compiler.ops.elementwise import Constant
from planform.compiler.types import TensorType, alignment, promote

from ..emitter import is_weight
from ..quantization.images import in_8_bits
from .registry import Emitter, Node, rule

_NAMES = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow", "maximum": "Max", "minimum": "Min",
    "neg": "Neg", "abs": "Abs", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "tanh": "Tanh", "sin": "Sin",
    "cos": "Cos", "erf": "Erf", "sigmoid": "Sigmoid", "relu": "Relu", "elu": "Elu", "less": "Less",
    "less_equal": "LessOrEqual", "equal": "Equal", "logical_and": "And", "floor": "Floor",
}  # fmt: skip


def lay_out(m: Emitter, x: ir.Value, source: TensorType, target: TensorType) -> ir.Value:
    """x permuted and given dims of one, so that it broadcasts against `target`."""
    order, inserted = alignment(source, target.dims)
    x = m.transpose(x, order)
    # Leading dims of one come by themselves.
    inner = [i for i in inserted if any(j not in inserted for j in range(i))]
    if inner:
        ahead = len(inserted) - len(inner)
        x = m.op("Unsqueeze", x, m.integers(*(i - ahead for i in inner)))
    return x


def operands(m: Emitter, node: Node, *inputs: ir.Value, dtype: str | None = None) -> list[ir.Value]:
    """The inputs, cast to one dtype and laid out against the result."""
    common = dtype or promote(v.type.dtype for v in node.inputs)
    out = node.output.type
    return [lay_out(m, m.cast(x, v.type.dtype, common), v.type, out) for x, v in zip(inputs, node.inputs, strict=True)]


@rule(*_NAMES)
def simple(m: Emitter, node: Node, *inputs: ir.Value) -> ir.Value:
    images = {x: v.type for x, v in zip(inputs, node.inputs) if v.type.rank}
    if images and all(m.stands_turned(x) and t == node.output.type for x, t in images.items()):
        # Images stay as convolutions have them; a sum of two is one of whole numbers where they are. onnxruntime comes
        # to the last operand first and lets the convolution that it comes to last add in place: in the order of the
        # graph that is the one whose image was just made (a ResNet-50's first blocks take 2% less).
        given = [m.turned(x) if x in images else x for x in inputs]
        if len(images) == 2 and node.op.name == "add":
            given = [in_8_bits(m, x) for x in reversed(given)]
        return m.turned_back(m.op(_NAMES[node.op.name], *given))
    if node.op.name == "mul" and (found := _scaled(m, *inputs)):
        return found
    floats = node.output.type.dtype if getattr(node.op, "floats", False) else None
    return m.op(_NAMES[node.op.name], *operands(m, node, *inputs, dtype=floats))


def _scaled(m: Emitter, *inputs: ir.Value) -> ir.Value | None:
    """A weight times a number, when the file is written."""
    for weight, number in (inputs, inputs[::-1]):
        made = m.made.get(number)
        if made and isinstance(made.op, Constant) and is_weight(weight) and weight.shape:
            by = made.op.value  # in the name too: a matrix has the same one however the rest is stored
            return m.fold(f"*{by!r}", weight.shape.numpy(), partial(_times, by), weight)
    return None


def _times(by: float, a: np.ndarray) -> np.ndarray:
    return a * a.dtype.type(by)  # type: ignore[no-any-return]


@rule("rsqrt")
def rsqrt(m: Emitter, node: Node, x: ir.Value) -> ir.Value:
    return m.op("Reciprocal", m.op("Sqrt", *operands(m, node, x, dtype=node.output.type.dtype)))


@rule("bfloat16")
def bfloat16(m: Emitter, node: Node, x: ir.Value) -> ir.Value:
    (x,) = operands(m, node, x, dtype=node.output.type.dtype)
    return m.op("Cast", m.op("Cast", x, to=ir.DataType.BFLOAT16), to=ir.DataType.FLOAT)


@rule("square")
def square(m: Emitter, node: Node, x: ir.Value) -> ir.Value:
    return m.op("Mul", x, x)


@rule("where")
def where(m: Emitter, node: Node, condition: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    out = node.output.type
    types = [v.type for v in node.inputs]
    a, b = (m.cast(v, t.dtype, out.dtype) for v, t in ((x, types[1]), (y, types[2])))
    return m.op("Where", *(lay_out(m, v, t, out) for v, t in zip((condition, a, b), types, strict=True)))


@rule("cast")
def cast(m: Emitter, node: Node, x: ir.Value) -> ir.Value:
    return m.cast(x, node.inputs[0].type.dtype, node.output.type.dtype)


@rule("stop")
def stop(m: Emitter, node: Node, x: ir.Value) -> ir.Value:
    return x


@rule("constant")
def constant(m: Emitter, node: Node) -> ir.Value:
    op: Any = node.op
    t = node.output.type
    return m.constant(op.value, np.float32 if t.is_float else t.numpy)
