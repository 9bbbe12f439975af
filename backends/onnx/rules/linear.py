"""Products. Weights are laid out as matrices when the file is written, so that each is one plain MatMul."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from planform.compiler.types import TensorType

from ..emitter import is_weight
from ..quantization import lookup, product
from .registry import Emitter, Node, rule


def matrix(m: Emitter, w: ir.Value, type: TensorType, rows: int) -> ir.Value:
    """A weight [over.., out..] as a matrix, its first `rows` dims as one."""
    sizes: list[Any] = list(type.sizes)  # numbers, for a weight
    shape = [prod(sizes[:rows]), prod(sizes[rows:])]
    if shape == sizes:
        return w
    if is_weight(w):
        return m.fold(":matrix", shape, lambda a: a.reshape(shape), w)
    return m.op("Reshape", w, m.integers(*shape))


def vector(m: Emitter, b: ir.Value, type: TensorType) -> ir.Value:
    """A bias [out..] as one dim."""
    if type.rank == 1 or not is_weight(b):
        return m.merge(b, type, type.rank)
    sizes: list[Any] = list(type.sizes)
    return m.fold(":vector", [prod(sizes)], lambda a: a.reshape(-1), b)


def rows(m: Emitter, op: Any, x: ir.Value, t: TensorType) -> ir.Value:
    """x with the dims that are summed over last and as one."""
    axes = [t.rank - 1] if op.over is None else [t.names.index(d.name) for d in op.over]
    order = [*(i for i in range(t.rank) if i not in axes), *axes]
    return m.merge(m.transpose(x, order), t.with_dims(t.dims[i] for i in order), len(axes))


@rule("linear")
def linear(m: Emitter, node: Node, x: ir.Value, w: ir.Value, bias: ir.Value | None = None) -> ir.Value:
    op: Any = node.op
    summed = 1 if op.over is None else len(op.over)
    own = None if bias is None else vector(m, bias, node.inputs[2].type)
    y = product(m, rows(m, op, x, node.inputs[0].type), matrix(m, w, node.inputs[1].type, summed), own)
    return m.split(y, node.output.type, len(op.out))


@rule("linear_packed")
def linear_packed(m: Emitter, node: Node, x: ir.Value, *weights: ir.Value) -> tuple[ir.Value, ...]:
    op: Any = node.op
    n, summed = len(op.outs), 1 if op.over is None else len(op.over)
    types = [v.type for v in node.inputs[1:]]
    matrices = [matrix(m, w, t, summed) for w, t in zip(weights[:n], types)]
    own = side_by_side(m, [vector(m, b, t) for b, t in zip(weights[n:], types[n:])], 0) if op.bias else None
    y = product(m, rows(m, op, x, node.inputs[0].type), side_by_side(m, matrices, 1), own)
    widths = [prod(d.size for d in out) for out in op.outs]
    parts = m.op("Split", y, m.integers(*widths), axis=-1, outputs=n) if n > 1 else (y,)
    m.joint[tuple(parts)] = y
    return tuple(m.split(part, v.type, len(out)) for part, v, out in zip(parts, node.outputs, op.outs))


def side_by_side(m: Emitter, weights: list[ir.Value], axis: int) -> ir.Value:
    """Weights joined along an axis, when the file is written if they are known then."""
    if not all(is_weight(w) for w in weights):
        return m.op("Concat", *weights, axis=axis)
    shapes = [w.shape.numpy() for w in weights if w.shape is not None]
    shape = [*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :]]
    return m.fold("", shape, lambda *arrays: np.concatenate(arrays, axis), *weights)


@rule("embed")
def embed(m: Emitter, node: Node, x: ir.Value, table: ir.Value) -> ir.Value:
    if x.producer() is None:  # an input of the model
        m.below[str(x.name)] = int(node.inputs[1].type.sizes[0])  # type: ignore[arg-type]
    return lookup(m, table, x)


@rule("unembed")
def unembed(m: Emitter, node: Node, x: ir.Value, table: ir.Value) -> ir.Value:
    return product(m, x, table, transposed=True)


@rule("contract")
def contract(m: Emitter, node: Node, x: ir.Value, y: ir.Value) -> ir.Value:
    op: Any = node.op
    return m.op("Einsum", x, y, equation=op.equation(*(v.type for v in node.inputs)))


@rule("einsum")
def einsum(m: Emitter, node: Node, x: ir.Value, y: ir.Value) -> ir.Value:
    op: Any = node.op
    left, right, result = op.terms()
    if len(right) == 2 and left and left[-1] == right[1] and result == left[:-1] + right[0]:
        return m.op("MatMul", x, m.transpose(y, [1, 0]))  # what flows back through a linear map
    return m.op("Einsum", x, y, equation=op.equation)
