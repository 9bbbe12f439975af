"""Attention. The step form becomes the runtime's GroupQueryAttention wherever that means the same; the rest
is standard Attention under an explicit mask.

GroupQueryAttention takes over the cache, the window, the cap and (where it can) the rotation of queries and
keys. It can't do documents or caches that are not the model's own states, its heads must have a multiple
of 8 entries, and those that it rotates a multiple of 16: then the standard ops step in.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from planform.compiler.ops.attention import Rope, rope_angles
from planform.compiler.ops.sequence import Advance
from planform.compiler.size import Size
from planform.compiler.types import Dim, TensorType

from ..emitter import WINDOW_SLACK, CannotLower, Emitter, StateLayout
from ..quantization.scheme import CACHE_WIDTH
from .capped import Chunk, Heads
from .masks import hide, row, seen
from .registry import Node, rule
from .rotary import rotated


@rule("rope")
def rope(m: Emitter, node: Node, x: ir.Value, position: ir.Value) -> ir.Value:
    op: Any = node.op
    t = node.inputs[0].type
    if t.rank != 4:
        raise CannotLower(f"`rope` of {t}: only [batch, time, heads, head_dim] has an ONNX form")
    half, heads, width = op.half(t), int(t.sizes[2]), int(t.sizes[3])  # type: ignore[arg-type]

    def angle(kind: str) -> ir.Value:
        # In float64 up to the cosine: a float32 angle at position 8000 is wrong in its fourth digit.
        rates = m.constant(rope_angles(np.ones(()), half, op.base), np.float64)
        at = m.op("Unsqueeze", m.op("Cast", position, to=ir.DataType.DOUBLE), m.integers(-1))
        return m.op("Cast", m.op(kind, m.op("Mul", at, rates)), to=ir.DataType.FLOAT)

    cos, sin = (m.shared((kind, position.name, half, op.base), partial(angle, kind)) for kind in ("Cos", "Sin"))
    return m.split(rotated(m, m.merge(x, t, 2), heads, width, half, cos, sin), t, 2)


@rule("attend")
def attend(m: Emitter, node: Node, q: ir.Value, k: ir.Value, v: ir.Value, *where: ir.Value) -> ir.Value:
    op: Any = node.op
    qt, kt, vt = (x.type for x in node.inputs[:3])
    new, old = qt.sizes[-3], kt.sizes[-3]
    bias, causal = None, False
    if where:
        if qt.rank != 4:
            raise CannotLower(f"`attend` along the stream of {qt}: only [batch, time, heads, head_dim]")
        bias = m.shared(("mask", op.causal, op.window, *(w.name for w in where)), lambda: _mask(m, op, *where))
    elif op.causal and not op.window and new == old:
        causal = True
    elif op.causal or op.window:
        key = ("mask", op.causal, op.window, str(new), str(old))
        bias = m.shared(key, lambda: hide(m, seen(m, op, row(m, new), row(m, old))))
    flat = [_three(m, m.merge(x, t, 2), t) for x, t in ((q, qt), (k, kt), (v, vt))]
    y = m.op(
        "Attention", *flat, bias, q_num_heads=qt.sizes[-2], kv_num_heads=kt.sizes[-2], scale=op.scale,
        softcap=op.softcap or 0.0, is_causal=int(causal),
    )  # fmt: skip
    out = node.output.type
    if out.rank != 4:
        return m.reshape(y, out.sizes)
    return m.split(y, out, 2)


def _three(m: Emitter, x: ir.Value, t: TensorType) -> ir.Value:
    """x [.., time, heads * width] with its leading dims as one."""
    if t.rank == 4:
        return x
    lead: Size = 1
    for s in t.sizes[:-3]:
        lead = lead * s
    return m.reshape(x, [lead, t.sizes[-3], t.sizes[-2] * t.sizes[-1]])


def _mask(m: Emitter, op: Any, position: ir.Value, document: ir.Value) -> ir.Value:
    same = m.op("Equal", m.op("Unsqueeze", document, m.integers(2)), m.op("Unsqueeze", document, m.integers(1)))
    visible = seen(m, op, position, position)
    return hide(m, same if visible is None else m.op("And", visible, same))


@rule("attend_cached")
def attend_cached(m: Emitter, node: Node, *inputs: ir.Value) -> tuple[ir.Value, ...]:
    op: Any = node.op
    q, k, v, key_cache, value_cache, length, count = inputs
    qt, vt = node.inputs[0].type, node.inputs[2].type
    states = [s for s in m.states if s.past is key_cache or s.past is value_cache]
    width = qt.sizes[-1]
    whole = isinstance(width, int) and width % 8 == 0 and width == vt.sizes[-1]
    if op.causal and qt.rank == 4 and whole and len(states) == 2:
        return _group_query(m, node, states, *inputs)
    return _with_ring(m, node, *inputs)


def _group_query(m: Emitter, node: Node, states: list[StateLayout], *inputs: ir.Value) -> tuple[ir.Value, ...]:
    op: Any = node.op
    q, k, v, key_cache, value_cache, length, count = inputs
    qt, kt, vt = (x.type for x in node.inputs[:3])
    # A window that no stream outgrows is none, and then the cache is no larger than the stream.
    window = op.window if op.window and op.window < (m.max_positions or op.window + 1) else None
    for state in states:
        _lay_out(state, window)
    scales = [_cache_scale(m, s) for s in (_of(states, key_cache), _of(states, value_cache))]
    eight = all(s is not None for s in scales)
    if eight and int(qt.sizes[-1]) % CACHE_WIDTH:  # type: ignore[arg-type]
        raise CannotLower(f"8 bit caches hold heads of a multiple of {CACHE_WIDTH} entries, not {qt.sizes[-1]}")
    if eight:
        for state in states:
            state.dtype = ir.DataType.INT8
    by = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8} if eight else {}

    def lengths() -> tuple[ir.Value, ir.Value]:
        """(index of each row's last key, a bound of the longest row), as the kernel wants them."""
        last = m.op("Sub", m.op("Add", length, count), m.constant(1, np.int32))
        chunk = m.op("Cast", m.op("Squeeze", m.dim(qt.sizes[1])), to=ir.DataType.INT32)
        return last, m.op("Add", m.op("ReduceMax", length, keepdims=0), chunk)

    last, total = m.shared(("lengths", length.name, count.name, str(qt.sizes[1])), lengths)
    cos = sin = None
    rotation = _rotation(m, q, k, length, qt)
    if rotation is not None:
        rotate, q, k = rotation
        half = rotate.half(qt)
        cos, sin = (_angle_table(m, kind, rotate.base, half) for kind in ("cos", "sin"))
    heads = m.merge(q, qt, 2), m.merge(k, kt, 2), m.merge(v, vt, 2)
    # The kernel takes the result of one product for all three as it is.
    three: Heads = (m.joint[heads], None, None) if heads in m.joint else heads

    def kernel() -> tuple[ir.Value, ...]:
        y, *present = m.microsoft(
            "GroupQueryAttention",
            *three,
            key_cache, value_cache, last, total, cos, sin, None, None, None, *(scales if eight else (None, None)),
            None, None, count,
            outputs=3, num_heads=qt.sizes[2], kv_num_heads=kt.sizes[2], scale=op.scale, softcap=op.softcap or 0.0,
            do_rotary=int(rotation is not None), local_window_size=window or -1,
            sliding_window_cache=int(window is not None), **by,
        )  # fmt: skip
        # The kernel leaves rows of padding as it found the memory: not a number, perhaps, which a later op that
        # masks by multiplying would spread to real rows.
        return m.op("Where", valid, y, m.constant(0.0)), *present

    valid = m.shared(("valid", count.name, str(qt.sizes[1])), lambda: _valid(m, count, qt.sizes[1]))
    if op.softcap and not eight and qt.sizes[1] != 1:
        chunk = Chunk(m, node, length, count, window)
        angles = (cos, sin) if cos is not None and sin is not None else None
        y, *present = m.either(
            chunk.long, lambda: chunk.attend(three, (key_cache, value_cache), angles), kernel, *[ir.DataType.FLOAT] * 3
        )
    else:
        y, *present = kernel()
    return m.split(y, node.output.type, 2), *present


def _of(states: list[StateLayout], past: ir.Value) -> StateLayout:
    return next(s for s in states if s.past is past)


def _cache_scale(m: Emitter, state: StateLayout) -> ir.Value | None:
    """The scales of an 8 bit cache, one a channel of a head; None where it is kept as it is."""
    scale = m.quantization.cache.get(state.path)
    return None if scale is None else m.constant(np.reshape(scale, (1, scale.shape[0], 1, scale.shape[1])))


def _valid(m: Emitter, count: ir.Value, time: Size) -> ir.Value:
    """bool[batch, time, 1]: which entries of a chunk are no padding."""
    within = m.op("Less", row(m, time), m.op("Unsqueeze", m.op("Cast", count, to=ir.DataType.INT64), m.integers(1)))
    return m.op("Unsqueeze", within, m.integers(2))


def _lay_out(state: StateLayout, window: int | None) -> None:
    """Gives a state the kernel's layout instead of the reference's ring."""
    t = state.type
    assert t is not None
    state.layout = "linear" if window is None else "window"
    if window is not None:
        state.type = t.with_dims((*t.dims[:2], Dim(t.dims[2].name, window + WINDOW_SLACK), t.dims[3]))


def _rotation(
    m: Emitter, q: ir.Value, k: ir.Value, length: ir.Value, qt: TensorType
) -> tuple[Rope, ir.Value, ir.Value] | None:
    """(the rope, query and key before it) where both were rotated alike, at the positions length + 0, 1 ..,
    and in a form that the kernel knows: it reads angles from a table, which streams without end would leave."""
    if m.max_positions is None:
        return None
    made = [m.made.get(x) for x in (q, k)]
    if not all(x is not None and isinstance(x.op, Rope) for x in made) or made[0].op != made[1].op:  # type: ignore[union-attr]
        return None
    for one in made:
        position = m.made.get(one.inputs[1])  # type: ignore[union-attr]
        if position is None or not isinstance(position.op, Advance) or position.inputs[0] is not length:
            return None
    rotate: Any = made[0].op  # type: ignore[union-attr]
    if int(qt.sizes[-1]) % 16 or rotate.half(qt) % 8:  # type: ignore[arg-type]
        return None
    return rotate, made[0].inputs[0], made[1].inputs[0]  # type: ignore[union-attr]


def _angle_table(m: Emitter, kind: str, base: float, half: int) -> ir.Value:
    """cos or sin of all angles, [max_positions, half], exact to float32."""
    assert m.max_positions is not None
    shape = (m.max_positions, half)
    function = {"cos": np.cos, "sin": np.sin}[kind]

    def table() -> np.ndarray:
        return function(rope_angles(np.arange(shape[0]), half, base))

    key = ("angles", kind, base, half)
    return m.shared(key, lambda: m.weight(f"rope.{kind}(base={base:g},half={half})", ir.DataType.FLOAT, shape, table))


def _with_ring(m: Emitter, node: Node, *inputs: ir.Value) -> tuple[ir.Value, ...]:
    """The reference's own way: attend to the ring and the chunk, then write the chunk into the ring."""
    op: Any = node.op
    q, k, v, key_cache, value_cache, length, count = inputs
    qt, ct = node.inputs[0].type, node.inputs[3].type
    k, v = (m.transpose(x, [0, 2, 1, 3]) for x in (k, v))
    slots, new = ct.sizes[2], qt.sizes[1]

    def column(x: ir.Value) -> ir.Value:
        return m.op("Unsqueeze", m.op("Cast", x, to=ir.DataType.INT64), m.integers(1))

    def places() -> tuple[ir.Value, ir.Value]:
        """(additive mask of ring and chunk, which of their entries the new ring holds)"""
        before, valid = column(length), column(count)
        slot, chunk = row(m, slots), row(m, new)
        one, size = m.constant(1, np.int64), m.op("Squeeze", m.dim(slots))
        last = m.op("Sub", before, one)
        held = m.op("Sub", last, m.op("Mod", m.op("Sub", last, slot), size))
        position = m.op("Add", before, chunk)
        real = m.op("And", m.op("GreaterOrEqual", held, m.constant(0, np.int64)), m.op("Less", slot, size))
        real = m.op("Concat", real, m.op("Less", chunk, valid), axis=1)
        visible = seen(m, op, position, m.op("Concat", held, position, axis=1))
        real = m.op("Unsqueeze", real, m.integers(1))
        bias = hide(m, real if visible is None else m.op("And", visible, real))
        # The newest position of each slot is in the chunk if it is not before it.
        last = m.op("Sub", m.op("Add", before, valid), one)
        held = m.op("Sub", last, m.op("Mod", m.op("Sub", last, slot), size))
        fresh = m.op("Sub", held, before)
        source = m.op("Where", m.op("Less", fresh, m.constant(0, np.int64)), slot, m.op("Add", fresh, size))
        return bias, m.op("Unsqueeze", source, m.integers(2))

    key = ("ring", op.causal, op.window, str(slots), str(new), length.name, count.name)
    bias, source = m.shared(key, places)
    keys, values = (m.op("Concat", c, x, axis=2) for c, x in ((key_cache, k), (value_cache, v)))
    y = m.op("Attention", m.transpose(q, [0, 2, 1, 3]), keys, values, bias, scale=op.scale, softcap=op.softcap or 0.0)
    y = m.transpose(y, [0, 2, 1, 3])

    def written(both: ir.Value) -> ir.Value:
        rows = m.op("GatherND", m.transpose(both, [0, 2, 1, 3]), source, batch_dims=1)
        return m.transpose(rows, [0, 2, 1, 3])

    return y, written(keys), written(values)
