"""Products. Weights are laid out as matrices when the file is written, so that each is one plain MatMul."""

from __future__ import annotations

from math import prod
from typing import Any

import onnx_ir as ir

from planform.compiler.types import TensorType

from ..emitter import is_weight
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


@rule("linear")
def linear(m: Emitter, node: Node, x: ir.Value, w: ir.Value, bias: ir.Value | None = None) -> ir.Value:
    op: Any = node.op
    t, out = node.inputs[0].type, node.output.type
    axes = [t.rank - 1] if op.over is None else [t.names.index(d.name) for d in op.over]
    rest = [i for i in range(t.rank) if i not in axes]
    x = m.transpose(x, [*rest, *axes])
    x = m.merge(x, t.with_dims(t.dims[i] for i in [*rest, *axes]), len(axes))
    y = m.op("MatMul", x, matrix(m, w, node.inputs[1].type, len(axes)))
    if bias is not None:
        y = m.op("Add", y, vector(m, bias, node.inputs[2].type))
    return m.split(y, out, len(op.out))


@rule("embed")
def embed(m: Emitter, node: Node, x: ir.Value, table: ir.Value) -> ir.Value:
    return m.op("Gather", table, x)


@rule("unembed")
def unembed(m: Emitter, node: Node, x: ir.Value, table: ir.Value) -> ir.Value:
    # The product with the transposed table reads the table as it lies, so that one copy in the file
    # serves the embedding too; it is as fast as a plain MatMul (see README.md).
    return m.microsoft("FusedMatMul", x, table, transB=1)


@rule("contract")
def contract(m: Emitter, node: Node, x: ir.Value, y: ir.Value) -> ir.Value:
    op: Any = node.op
    return m.op("Einsum", x, y, equation=op.equation(*(v.type for v in node.inputs)))
