"""Recurrences: one Scan over the entries whose body is a product and a sum; the rest is made for all at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from planform.compiler.ops.elementwise import Sigmoid
from planform.compiler.types import TensorType

from .registry import Emitter, Node, rule
from .sequence import indices


@rule("log_decay")
def log_decay(m: Emitter, node: Node, x: ir.Value, rate: ir.Value) -> ir.Value:
    c = node.op.c  # type: ignore[attr-defined]
    shape = [int(s) for s in node.inputs[1].type.sizes]  # type: ignore[arg-type]

    def folded(a: np.ndarray) -> np.ndarray:
        return (-c * np.logaddexp(0.0, a.astype(np.float64))).astype(a.dtype)

    if rate.const_value is not None:  # the runtime's Softplus takes as long as 20 products
        scale = m.fold(f":-{c:g}softplus", shape, folded, rate)
    else:
        scale = m.op("Mul", m.op("Softplus", rate), m.constant(-c))
    made = m.made.get(x)
    if made and isinstance(made.op, Sigmoid):
        # The runtime's Sigmoid is right to 1e-7 of 1, not of itself: below -10 it is off by a quarter and more, and it
        # is gates near 0 that keep a state for long.
        return m.op("Div", scale, m.op("Add", m.op("Exp", m.op("Neg", made.inputs[0])), m.constant(1.0)))
    return m.op("Mul", x, scale)


@rule("linear_recurrence")
def linear_recurrence(m: Emitter, node: Node, x: ir.Value, log_a: ir.Value, position: ir.Value) -> ir.Value:
    t = node.inputs[0].type
    first = m.op("Equal", position, m.constant(0, np.int32))
    a, b = _coefficients(m, node, x, log_a, _over(m, first, t))
    a = m.op("Where", _over(m, first, t), m.constant(0.0), a)
    # Nothing stands before: zeros of the shape of an entry.
    start = m.op("Expand", m.constant(0.0), m.op("Concat", *(m.dim(s) for s in (t.sizes[0], *t.sizes[2:])), axis=0))
    return _scan(m, a, b, start, t)[0]


@rule("linear_recurrence_cached")
def linear_recurrence_cached(
    m: Emitter, node: Node, x: ir.Value, log_a: ir.Value, state: ir.Value, length: ir.Value, count: ir.Value
) -> tuple[ir.Value, ir.Value]:
    t = node.inputs[0].type
    steps = m.shared(("steps", str(t.sizes[1])), lambda: _row(m, t.sizes[1]))

    def column(v: ir.Value) -> ir.Value:
        return m.op("Unsqueeze", m.op("Cast", v, to=ir.DataType.INT64), m.integers(1))

    def begins() -> ir.Value:
        return m.op("Equal", m.op("Add", column(length), steps), m.constant(0, np.int64))

    key = (str(t.sizes[1]), t.rank)
    first = m.shared(("begins", length.name, *key), lambda: _over(m, begins(), t))
    valid = m.shared(("within", count.name, *key), lambda: _over(m, m.op("Less", steps, column(count)), t))
    a, b = _coefficients(m, node, x, log_a, first)
    # Before a stream's first entry the state is zero, so its decay needs no care; padding hands the state on.
    a, b = m.op("Where", valid, a, m.constant(1.0)), m.op("Where", valid, b, m.constant(0.0))
    return _scan(m, a, b, state, t)


def _row(m: Emitter, size: Any) -> ir.Value:
    return m.op("Unsqueeze", indices(m, size), m.integers(0))


def _over(m: Emitter, mask: ir.Value, t: TensorType) -> ir.Value:
    """bool[batch, time] for all entries of [batch, time, ..]."""
    return m.op("Unsqueeze", mask, m.integers(*range(2, t.rank)))


def _coefficients(m: Emitter, node: Node, x: ir.Value, log_a: ir.Value, first: ir.Value) -> tuple[ir.Value, ir.Value]:
    """a and b of h = a h + b, b whole where a document begins."""
    a = m.op("Exp", log_a)
    if not node.op.normalise:  # type: ignore[attr-defined]
        return a, x
    # 1 - a^2 = tanh(-log a) (1 + a^2): the difference itself is rounding and nothing else as a comes near 1.
    scale = m.op("Mul", m.op("Tanh", m.op("Neg", log_a)), m.op("Add", m.op("Mul", a, a), m.constant(1.0)))
    return a, m.op("Mul", x, m.op("Where", first, m.constant(1.0), m.op("Sqrt", scale)))


def _scan(m: Emitter, a: ir.Value, b: ir.Value, start: ir.Value, t: TensorType) -> tuple[ir.Value, ir.Value]:
    """(h [batch, time, ..], the last h [batch, ..]) of h = a h + b from `start`."""
    turned = [1, 0, *range(2, t.rank)]
    body = _body(m, t)
    last, h = m.op("Scan", start, m.transpose(a, turned), m.transpose(b, turned), outputs=2, body=body,
                   num_scan_inputs=2)  # fmt: skip
    return m.transpose(h, turned), last


def _body(m: Emitter, t: TensorType) -> ir.Graph:
    """(h, a, b) -> (a h + b, the same again as a result of the step). Its names are taken from the whole model's:
    the runtime wants each only once."""
    kind = ir.TensorType(ir.DataType.FLOAT)
    rank = t.rank - 1
    h, a, b = (ir.Value(name=m.fresh(f"step/{n}"), type=kind, shape=ir.Shape([None] * rank)) for n in ("h", "a", "b"))
    product = ir.node("Mul", [a, h])
    total = ir.node("Add", [product.outputs[0], b])
    result = ir.node("Identity", [total.outputs[0]])
    for n, hint in ((product, "decayed"), (total, "next"), (result, "result")):
        n.outputs[0].name, n.outputs[0].type = m.fresh(f"step/{hint}"), kind
        n.name = n.outputs[0].name
    return ir.Graph([h, a, b], [total.outputs[0], result.outputs[0]], nodes=[product, total, result], name="step")


# -- convolutions and block-diagonal products -------------------------------------------------------------------


@rule("conv1d")
def conv1d(m: Emitter, node: Node, x: ir.Value, weight: ir.Value, *rest: ir.Value) -> ir.Value:
    *bias, position = rest
    t, width = node.inputs[0].type, node.op.width  # type: ignore[attr-defined]
    pads = [0] * (2 * t.rank)
    pads[1] = width - 1
    padded = m.op("Pad", x, m.integers(*pads), m.constant(0.0)) if width > 1 else x

    def real(s: int) -> ir.Value:
        seen = m.op("GreaterOrEqual", position, m.constant(s, np.int32))
        return m.shared(("document reaches back", s, position.name, t.rank), lambda: _over(m, seen, t))

    return _taps(m, node, padded, weight, list(bias), real)


@rule("conv1d_cached")
def conv1d_cached(m: Emitter, node: Node, *values: ir.Value) -> tuple[ir.Value, ir.Value]:
    x, weight, bias, kept, _, count = node.op.arguments(values)  # type: ignore[attr-defined]
    width = node.op.width  # type: ignore[attr-defined]
    both = m.op("Concat", kept, x, axis=1)

    def newest() -> ir.Value:
        """Where the inputs before the next chunk stand: int64[batch, width - 1, 1]."""
        start = m.op("Unsqueeze", m.op("Cast", count, to=ir.DataType.INT64), m.integers(1))
        rows = m.op("Add", start, m.constant(np.arange(width - 1)[None], np.int64))
        return m.op("Unsqueeze", rows, m.integers(2))

    rows = m.shared(("newest inputs", count.name, width), newest)
    return _taps(m, node, both, weight, bias, None), m.op("GatherND", both, rows, batch_dims=1)


def _taps(m: Emitter, node: Node, x: ir.Value, weight: ir.Value, bias: list[ir.Value], real: Any) -> ir.Value:
    """Shifted products: as fast as the runtime's own kernels for these, and exact for padded rows."""
    width = node.op.width  # type: ignore[attr-defined]
    rest = [int(s) for s in node.inputs[1].type.sizes[1:]]  # type: ignore[arg-type]
    y = None
    for s in range(width):
        i = width - 1 - s
        stop = m.integers(-s) if s else m.integers(2**31 - 1)
        tap = m.op("Slice", x, m.integers(i), stop, m.integers(1)) if width > 1 else x
        if real is not None and s:
            tap = m.op("Where", real(s), tap, m.constant(0.0))
        if weight.const_value is not None:
            w = m.fold(f":tap{i}", rest, lambda a, i=i: a[i], weight)
        else:
            w = m.op("Gather", weight, m.constant(i, np.int64), axis=0)
        tap = m.op("Mul", tap, w)
        y = tap if y is None else m.op("Add", y, tap)
    assert y is not None
    return m.op("Add", y, bias[0]) if bias else y


@rule("block_linear")
def block_linear(m: Emitter, node: Node, x: ir.Value, weight: ir.Value, bias: ir.Value | None = None) -> ir.Value:
    t, blocks = node.inputs[0].type, node.op.blocks  # type: ignore[attr-defined]
    part = int(t.sizes[-1]) // blocks  # type: ignore[arg-type]
    # [.., rows, d] -> [.., blocks, rows, part]: a batch of products, one a block.
    rows = t.rank - 1
    y = m.reshape(x, [blocks, part], rows)
    if rows:
        swap = [*range(rows - 1), rows, rows - 1, rows + 1]
        y = m.transpose(m.op("MatMul", m.transpose(y, swap), weight), swap)
    else:
        row = m.op("Unsqueeze", y, m.integers(1))
        y = m.op("Squeeze", m.op("MatMul", row, weight), m.integers(1))
    y = m.reshape(y, [t.sizes[-1]], rows)
    return m.op("Add", y, bias) if bias is not None else y
