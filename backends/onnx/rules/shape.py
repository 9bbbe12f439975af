"""Changes of shape, entries looked up and put back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from planform.compiler.size import Size
from planform.compiler.types import TensorType

from .registry import Emitter, Node, rule
from .sequence import indices


@rule("rearrange")
def rearrange(m: Emitter, node: Node, x: ir.Value) -> ir.Value:
    op: Any = node.op
    t, out = node.inputs[0].type, node.output.type
    split, order, _ = op.plan(t)
    sizes = tuple(d.size for d in split)
    x = m.transpose(x if sizes == t.sizes else m.reshape(x, sizes), order)
    return x if tuple(sizes[i] for i in order) == out.sizes else m.reshape(x, out.sizes)


@rule("array")
def array(m: Emitter, node: Node) -> ir.Value:
    op: Any = node.op
    return m.constant(np.reshape(op.values, node.output.type.shape({})))


def product(sizes: Sequence[Size]) -> Size:
    total: Size = 1
    for s in sizes:
        total = total * s
    return total


@rule("broadcast")
def broadcast(m: Emitter, node: Node, x: ir.Value) -> ir.Value:
    op: Any = node.op
    to = node.output.type.sizes
    others = op.others(len(to))
    if op.mean:
        copies = m.op("Cast", m.op("Squeeze", m.dim(product([to[i] for i in others]))), to=ir.DataType.FLOAT)
        x = m.op("Div", x, copies)
    x = m.transpose(x, np.argsort(op.at).tolist())
    return m.op("Expand", m.op("Unsqueeze", x, m.integers(*others)), m.shape(to)) if others else x


@rule("sum_to")
def sum_to(m: Emitter, node: Node, x: ir.Value) -> ir.Value:
    op: Any = node.op
    others = op.others(node.inputs[0].type.rank)
    if others:
        x = m.op("ReduceMean" if op.mean else "ReduceSum", x, m.integers(*others), keepdims=0)
    return m.transpose(x, np.argsort(np.argsort(op.at)).tolist())


@dataclass(frozen=True)
class _Way:
    """The order in which an array of `take` has, first, the dims that it shares with the index (`shared`, axes of x,
    `also`, of the index), then the axis or the index's own dims (`own`), then the rest; and where these stand in the
    result."""

    shared: list[int]
    also: list[int]
    own: list[int]
    rest: list[int]
    result: list[int]

    @staticmethod
    def of(op: Any, x: TensorType, index: TensorType) -> _Way:
        _, places, mine = op.plan(x, index)
        at = dict(zip((i for i in range(x.rank) if i != op.axis), places))
        also = [i for i, p in enumerate(mine) if p in places]
        shared = [next(a for a, p in at.items() if p == mine[i]) for i in also]
        own = [i for i in range(index.rank) if i not in also]
        rest = [i for i in at if i not in shared]
        return _Way(shared, also, own, rest, [*(mine[i] for i in (*also, *own)), *(at[i] for i in rest)])


@rule("take")
def take(m: Emitter, node: Node, x: ir.Value, index: ir.Value) -> ir.Value:
    op: Any = node.op
    t, at = node.inputs[0].type, node.inputs[1].type
    way = _Way.of(op, t, at)
    if not way.shared:
        return m.op("Gather", x, index, axis=op.axis)
    x = m.transpose(x, [*way.shared, op.axis, *way.rest])
    index = m.cast(m.transpose(index, [*way.also, *way.own]), at.dtype, "i64")
    y = m.op("GatherND", x, m.op("Unsqueeze", index, m.integers(-1)), batch_dims=len(way.shared))
    return m.transpose(y, np.argsort(way.result).tolist())


@rule("put")
def put(m: Emitter, node: Node, x: ir.Value, index: ir.Value) -> ir.Value:
    """As rows of one matrix, [shared * size, rest], to which rows are added."""
    op: Any = node.op
    t, at = node.output.type, node.inputs[1].type
    way = _Way.of(op, t, at)
    size, shared = t.sizes[op.axis], product([t.sizes[i] for i in way.shared])
    rest = product([t.sizes[i] for i in way.rest])
    index = m.cast(m.transpose(index, [*way.also, *way.own]), at.dtype, "i64")
    if way.shared:
        first = m.op("Mul", m.op("Unsqueeze", indices(m, shared), m.integers(1)), m.dim(size))
        index = m.op("Add", m.reshape(index, [shared, product([at.sizes[i] for i in way.own])]), first)
    rows = product([shared, *(at.sizes[i] for i in way.own)])
    x = m.reshape(m.transpose(x, way.result), [rows, rest])
    zeros = m.op("ConstantOfShape", m.shape([shared * size, rest]))
    y = m.op("ScatterND", zeros, m.reshape(index, [rows, 1]), x, reduction="add")
    order = [*way.shared, op.axis, *way.rest]
    return m.transpose(m.reshape(y, [t.sizes[i] for i in order]), np.argsort(order).tolist())
