"""Ops that know the sequence axis."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from .registry import Emitter, Node, rule


@rule("next")
def next_entry(m: Emitter, node: Node, x: ir.Value, document: ir.Value) -> ir.Value:
    t = node.output.type
    start, end, last, axis = m.integers(1), m.integers(2**31 - 1), m.integers(-1), m.integers(1)
    none = m.constant(-1, t.numpy)
    after = m.op("Slice", x, start, end, axis)
    same = m.op("Equal", m.op("Slice", document, start, end, axis), m.op("Slice", document, m.integers(0), last, axis))
    return m.op("Pad", m.op("Where", same, after, none), m.integers(0, 0, 0, 1), none)


@rule("advance")
def advance(m: Emitter, node: Node, length: ir.Value) -> ir.Value:
    op: Any = node.op
    steps = indices(m, op.time.size)
    return m.op("Add", m.op("Unsqueeze", length, m.integers(1)), m.op("Cast", steps, to=ir.DataType.INT32))


def indices(m: Emitter, size: Any) -> ir.Value:
    """int64[size]: 0, 1, 2 .."""
    if isinstance(size, int):
        return m.constant(np.arange(size), np.int64)
    end = m.op("Squeeze", m.dim(size))
    return m.op("Range", m.constant(0, np.int64), end, m.constant(1, np.int64))


@rule("last")
def last(m: Emitter, node: Node, x: ir.Value, count: ir.Value) -> ir.Value:
    at = m.op("Sub", m.op("Cast", count, to=ir.DataType.INT64), m.constant(1, np.int64))
    picked = m.op("GatherND", x, m.op("Unsqueeze", at, m.integers(1)), batch_dims=1)
    return m.op("Unsqueeze", picked, m.integers(1))


@rule("iota")
def iota(m: Emitter, node: Node) -> ir.Value:
    sizes = node.output.type.sizes
    steps = m.op("Cast", indices(m, sizes[-1]), to=ir.DataType.INT32)
    return m.op("Expand", steps, m.shape(sizes))
