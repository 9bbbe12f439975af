"""Recurrences: a Scan over the entries whose body is a product and a sum; the rest is made for all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from planform.compiler.ops.elementwise import Sigmoid
from planform.compiler.types import TensorType

from ..emitter import is_weight
from .linear import vector
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
    forget = m.shared(("forget", position.name, t.rank), lambda: _forget(m, position, t))
    a, b = _coefficients(m, node, x, m.op("Add", log_a, forget))
    # Nothing stands before: zeros of the shape of an entry.
    start = m.op("Expand", m.constant(0.0), m.shape([t.sizes[0], *t.sizes[2:]]))
    return scan(m, a, b, start, t)


@rule("linear_recurrence_cached")
def linear_recurrence_cached(
    m: Emitter, node: Node, x: ir.Value, log_a: ir.Value, state: ir.Value, length: ir.Value, count: ir.Value
) -> tuple[ir.Value, ir.Value]:
    t = node.inputs[0].type

    def forget() -> ir.Value:
        steps = m.op("Cast", indices(m, t.sizes[1]), to=ir.DataType.INT32)
        return _forget(m, m.op("Add", m.op("Unsqueeze", length, m.integers(1)), steps), t)

    if node.op.normalise:  # type: ignore[attr-defined]  # else a first entry needs no care: the state before it is zero
        log_a = m.op("Add", log_a, m.shared(("forget", length.name, str(t.sizes[1]), t.rank), forget))
    h = scan(m, *_coefficients(m, node, x, log_a), state, t)

    def newest() -> tuple[ir.Value, ir.Value]:
        """(where each row's last valid entry stands, int64[batch, 1]; whether it has one, bool[batch, 1..])"""
        last = m.op("Sub", m.op("Cast", count, to=ir.DataType.INT64), m.constant(1, np.int64))
        place = m.op("Unsqueeze", m.op("Max", last, m.constant(0, np.int64)), m.integers(1))
        some = m.op("GreaterOrEqual", last, m.constant(0, np.int64))
        return place, m.op("Unsqueeze", some, m.integers(*range(1, t.rank - 1)))

    # Chosen from all that come out, so that padding may do to the state what it likes.
    place, some = m.shared(("newest entry", count.name, t.rank), newest)
    return h, m.op("Where", some, m.op("GatherND", h, place, batch_dims=1), state)


GONE = -1e30
"""The logarithm of a decay that leaves nothing."""


def _forget(m: Emitter, position: ir.Value, t: TensorType) -> ir.Value:
    """What added to log a makes a 0 where a document begins, [batch, time, 1..] from positions [batch, time]."""
    first = m.op("Equal", position, m.constant(0, np.int32))
    return _over(m, m.op("Where", first, m.constant(GONE), m.constant(0.0)), t)


def _over(m: Emitter, x: ir.Value, t: TensorType) -> ir.Value:
    """[batch, time] against [batch, time, ..]."""
    return m.op("Unsqueeze", x, m.integers(*range(2, t.rank)))


def _coefficients(m: Emitter, node: Node, x: ir.Value, log_a: ir.Value) -> tuple[ir.Value, ir.Value]:
    """a and b of h = a h + b."""
    a = m.op("Exp", log_a)
    if not node.op.normalise:  # type: ignore[attr-defined]
        return a, x
    # 1 - a^2 = 2 z / (1 + z) with z = tanh(-log a): the difference itself would be rounding and nothing else as a comes
    # near 1. Where a is 0, it is 1: a document's first entry comes in whole.
    half = m.op("Softsign", m.op("Tanh", log_a))
    return a, m.op("Mul", x, m.op("Sqrt", m.op("Mul", half, m.constant(-2.0))))


def scan(m: Emitter, a: ir.Value, b: ir.Value, start: ir.Value, t: TensorType) -> ir.Value:
    """h [batch, time, ..] of h = a h + b along time, from `start` [batch, ..]; t is the type of a, b and h.

    For each row of the batch a Scan over its entries, which are read and written where they lie: with one Scan over the
    entries of all rows the three would have to be transposed, which takes longer than the Scan itself. A chunk of one
    entry needs none.
    """

    def step(h: ir.Value, a: ir.Value, b: ir.Value) -> list[ir.Node]:
        product = ir.node("Mul", [a, h])
        total = ir.node("Add", [product.outputs[0], b])
        return [product, total, ir.node("Identity", total.outputs)]

    def row(h: ir.Value, a: ir.Value, b: ir.Value) -> list[ir.Node]:
        how: dict[str, Any] = {"body": _body(m, "step", step, [t.rank - 2] * 3, 2), "num_scan_inputs": 2}
        return [ir.node("Scan", [h, a, b], attributes=how, num_outputs=2)]

    def several() -> list[ir.Value]:
        body = _body(m, "row", row, [t.rank - 2, t.rank - 1, t.rank - 1])
        return [m.op("Scan", start, a, b, body=body, num_scan_inputs=3)]

    def single() -> list[ir.Value]:
        return [m.op("Add", m.op("Mul", a, m.op("Unsqueeze", start, m.integers(1))), b)]

    more = m.shared(("more entries", str(t.sizes[1])), lambda: m.op("Greater", m.dim(t.sizes[1]), m.integers(1)))
    found: ir.Value = m.either(more, several, single, ir.DataType.FLOAT)
    return found


def _body(
    m: Emitter, name: str, make: Callable[..., list[ir.Node]], ranks: Sequence[int] = (), results: int = 1
) -> ir.Graph:
    """A body with float inputs of these ranks; its results are the last values that its nodes give. Names in it are
    taken from the whole model's: the runtime wants each only once."""
    kind = ir.TensorType(ir.DataType.FLOAT)
    inputs = [ir.Value(name=m.fresh(f"{name}/in"), type=kind, shape=ir.Shape([None] * r)) for r in ranks]
    nodes = make(*inputs)
    for n in nodes:
        for v in n.outputs:
            v.name, v.type = m.fresh(f"{name}/{n.op_type}"), kind
        n.name = n.outputs[0].name
    made = [v for n in nodes for v in n.outputs]
    return ir.Graph(inputs, made[-results:], nodes=nodes, name=name)


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
    op: Any = node.op
    x, weight, bias, kept, _, count = op.arguments(values)
    both = m.op("Concat", kept, x, axis=1)

    def newest() -> ir.Value:
        """Where the inputs before the next chunk stand: int64[batch, width - 1, 1]."""
        start = m.op("Unsqueeze", m.op("Cast", count, to=ir.DataType.INT64), m.integers(1))
        rows = m.op("Add", start, m.constant(np.arange(op.width - 1)[None], np.int64))
        return m.op("Unsqueeze", rows, m.integers(2))

    rows = m.shared(("newest inputs", count.name, op.width), newest)
    sizes = [int(s) for s in node.inputs[1].type.sizes[1:]]  # type: ignore[arg-type]
    channels = prod(sizes)
    if channels % CHANNELS or not is_weight(weight):
        y = _taps(m, node, both, weight, bias, None)
    else:
        y = _depthwise(m, node, both, weight, bias, channels)
    return y, m.op("GatherND", both, rows, batch_dims=1)


CHANNELS = 16
"""The runtime computes a depthwise convolution by blocks of so many channels, and badly where they don't come out."""


def _depthwise(m: Emitter, node: Node, x: ir.Value, weight: ir.Value, bias: list[ir.Value], channels: int) -> ir.Value:
    """As an image of time x 1 pixels: the runtime takes the transpositions as part of its own layout of channels."""
    t, width = node.inputs[0].type, node.op.width  # type: ignore[attr-defined]
    x = m.op("Unsqueeze", m.merge(x, t, t.rank - 2), m.integers(2))
    taps = m.fold(":channels", (channels, 1, width, 1), lambda a: a.reshape(width, -1).T, weight)
    own = [vector(m, b, v.type) for b, v in zip(bias, node.inputs[2:])]
    y = m.op("Conv", m.transpose(x, [0, 3, 1, 2]), taps, *own, group=channels, kernel_shape=[width, 1])
    return m.split(m.op("Squeeze", m.transpose(y, [0, 2, 3, 1]), m.integers(2)), t, t.rank - 2)


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
    # [.., d] -> [rows, blocks, part]: a batch of products, one a block, that reads the rows where they lie.
    parts = m.shared(("parts", str(x.name), blocks), lambda: m.op("Reshape", x, m.integers(-1, blocks, part)))
    y = m.transpose(m.microsoft("FusedMatMul", parts, weight, transBatchA=1), [1, 0, 2])
    y = m.reshape(y, t.sizes)
    return m.op("Add", y, bias) if bias is not None else y
