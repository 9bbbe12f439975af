"""Rotary positions and attention. Masks are predicates, never arrays that somebody keeps."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from planform.compiler.ops import attention as ops

from ..policy import DTYPES
from .contract import Call, Default, rule


def angles(call: Call, position: Any, half: int, base: float) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) of the rotary angles, [.., time, 1, half]; every layer shares them."""
    key = ("rope", id(position), half, base)
    if key not in call.shared:
        wide = DTYPES[call.policy.wide]
        if isinstance(position, Default):
            where = jnp.arange(position.type.shape({})[-1]) if position.kind == "iota" else position.array()
        else:
            where = position
        rates = base ** (-jnp.arange(half, dtype=wide) / half)
        angle = (where[..., None].astype(wide) * rates)[..., None, :]
        # The position is kept beside its angles, so that its id is no other value's.
        call.shared[key] = (jnp.cos(angle), jnp.sin(angle), position)
    cos, sin, _ = call.shared[key]
    return cos, sin


@rule(ops.Rope, lazy=Default, floats="own")
def rope(call: Call, x: jax.Array, position: Any) -> jax.Array:
    half = call.op.half(call.inputs[0])
    cos, sin = angles(call, position, half, call.op.base)
    return rotate(x, cos, sin)


@jax.custom_vjp
def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """x with its pairs (i, i + half) turned by the angles; turned back, for the gradient."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1).astype(x.dtype)


rotate.defvjp(
    lambda x, cos, sin: (rotate(x, cos, sin), (cos, sin)),
    lambda kept, dy: (rotate(dy, kept[0], -kept[1]), None, None),
)


def seen(op: Any, pq: jax.Array, pk: jax.Array) -> jax.Array:
    """visible[.., T, S] by positions pq[.., T] and pk[.., S] alone."""
    ago = pq[..., :, None] - pk[..., None, :]
    ok = jnp.ones_like(ago, bool)
    if op.causal:
        ok &= ago >= 0
    if op.window:
        ok &= ago < op.window
        if not op.causal:
            ok &= ago > -op.window
    return ok


@rule(ops.Attend, lazy=Default)
def attend(call: Call, q: jax.Array, k: jax.Array, v: jax.Array, *given: Any) -> jax.Array:
    positions, documents = _where(given)
    if positions is None:
        ok = seen(call.op, jnp.arange(q.shape[-3]), jnp.arange(k.shape[-3]))
    else:
        ok = seen(call.op, positions, positions)
    if documents is not None:
        ok &= documents[..., :, None] == documents[..., None, :]
    return core(call, q, k, v, ok)


def _where(given: tuple[Any, ...]) -> tuple[jax.Array | None, jax.Array | None]:
    """(position, document) where they are arrays; None stands for 0, 1, 2 .. and for a single document."""
    arrays = [None if g is None or isinstance(g, Default) else g for g in (given or (None, None))]
    if given and isinstance(given[0], Default) and given[0].kind != "iota":
        arrays[0] = given[0].array()
    return arrays[0], arrays[1]


@rule(ops.AttendLocal, lazy=Default)
def attend_local(call: Call, q: jax.Array, k: jax.Array, v: jax.Array, *given: Any) -> jax.Array:
    op, time = call.op, q.shape[-3]
    block, back = op.block, -(-(op.window - 1) // op.block)
    if time <= (back + 1) * block:
        return attend(call, q, k, v, *given)
    blocks = -(-time // block)
    pad = blocks * block - time

    def cut(a: jax.Array, axis: int) -> jax.Array:
        """[.., time, ..] as [.., blocks, block, ..]."""
        axis %= a.ndim
        a = jnp.pad(a, [(0, pad if i == axis else 0) for i in range(a.ndim)])
        return a.reshape(*a.shape[:axis], blocks, block, *a.shape[axis + 1 :])

    def with_earlier(a: jax.Array, axis: int) -> jax.Array:
        """Each block [.., blocks, block, ..] behind the `back` blocks before it."""
        axis %= a.ndim
        padded = jnp.pad(a, [(back if i == axis else 0, 0) for i in range(a.ndim)])
        parts = [jax.lax.slice_in_dim(padded, i, i + blocks, axis=axis) for i in range(back + 1)]
        return jnp.concatenate(parts, axis + 1)

    positions, documents = _where(given)
    index = jnp.arange(blocks * block).reshape(blocks, block)
    behind = jnp.arange(-back * block, blocks * block)
    keys = jnp.stack([behind[i * block : (i + back + 1) * block] for i in range(blocks)])
    inside = (keys >= 0) & (keys < time)
    if positions is None:
        ok = seen(op, index, keys) & inside[:, None, :]
    else:
        p = cut(positions, -1)
        # C2 lets the index stand for order, so that what pads the end is never seen.
        ok = seen(op, p, with_earlier(p, -2)) & seen(op, index, keys) & inside[:, None, :]
    if documents is not None:
        d = cut(documents, -1)
        ok &= d[..., :, None] == with_earlier(d, -2)[..., None, :]
    out = core(call, cut(q, -3), with_earlier(cut(k, -3), -4), with_earlier(cut(v, -3), -4), ok)
    return out.reshape(*q.shape[:-3], blocks * block, *out.shape[-2:])[..., :time, :, :]


def core(call: Call, q: jax.Array, k: jax.Array, v: jax.Array, ok: jax.Array) -> jax.Array:
    """q [.., T, H, D], k and v [.., S, K, D], ok [.., T, S] -> [.., T, H, Dv].

    Matrices [query heads of one key head x T, S] go through plain batched products: the small operands are
    transposed to [.., K, .., D] and never the scores.
    """
    shared, lead = k.shape[-2], q.shape[:-3]
    n, time = q.shape[-2] // shared, q.shape[-3]
    q = (q * call.op.scale).reshape(*lead, time, shared, n, q.shape[-1])
    q = jnp.moveaxis(q, -4, -2).reshape(*lead, shared, n * time, q.shape[-1])
    k, v = k.swapaxes(-3, -2), v.swapaxes(-3, -2)
    out = softmax_product(q, k, v, ok[..., None, :, :], call.op.softcap)
    out = out.reshape(*lead, shared, n, time, v.shape[-1])
    return jnp.moveaxis(out, -2, -4).reshape(*lead, time, shared * n, v.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def softmax_product(q: jax.Array, k: jax.Array, v: jax.Array, ok: jax.Array, cap: float | None) -> jax.Array:
    """softmax(cap(q k^T), where ok) v for q [.., n * T, D], k and v [.., S, D], ok [.., T, S].

    The gradient keeps the scores and the rows' log-sums, and takes the softmax's row sums from the results
    (arXiv:2205.14135, section 3.1), which are as much smaller as a head is than the context.
    """
    return _attention(q, k, v, ok, cap)[0]


def _attention(
    q: jax.Array, k: jax.Array, v: jax.Array, ok: jax.Array, cap: float | None
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    wide = jnp.promote_types(q.dtype, jnp.float32)
    z = _product(q, k, -1, -1, wide)
    if cap:
        z = jnp.tanh(z * (1 / cap))
    # Behind a cap, a hidden score is one whose exponential is 0 and whose tanh' is still finite.
    z = jnp.where(_rows(ok, z), z, -1e4 / min(cap, 1.0) if cap else ops.HIDDEN)
    if cap and cap <= MOST:
        p = jnp.exp(z * cap)  # within float32's range as it is
        total = jnp.maximum(jnp.sum(p, -1, keepdims=True), 1e-30)  # a row may see nothing: padding
        logs = jnp.log(total)
    else:
        high = jnp.max(z, -1, keepdims=True) * (cap or 1)
        p = jnp.exp(z * (cap or 1) - high)
        total = jnp.sum(p, -1, keepdims=True)
        logs = jnp.log(total) + high
    out = (_product(p.astype(v.dtype), v, -1, -2, wide) / total).astype(v.dtype)
    return out, (q, k, v, z, logs, out)


MOST = 60.0
"""The largest cap c for which sums of exp(c) over a context stay far inside float32's range."""


def _attention_gradient(cap: float | None, kept: tuple[jax.Array, ...], dout: jax.Array) -> tuple[Any, ...]:
    q, k, v, z, logs, out = kept
    wide = z.dtype
    p = jnp.exp(z * (cap or 1) - logs)
    dp = _product(dout, v, -1, -1, wide)
    ds = p * (dp - jnp.sum(dout.astype(wide) * out.astype(wide), -1, keepdims=True))
    if cap:
        ds = ds * (1 - z * z)
    ds, p = ds.astype(q.dtype), p.astype(v.dtype)
    dq = _product(ds, k, -1, -2, q.dtype)
    # Of the two factors the narrow one is transposed.
    dk = _product(q.swapaxes(-1, -2), ds, -1, -2, k.dtype).swapaxes(-1, -2)
    dv = _product(dout.swapaxes(-1, -2), p, -1, -2, v.dtype).swapaxes(-1, -2)
    return dq, dk, dv, None


softmax_product.defvjp(_attention, _attention_gradient)


def _product(a: jax.Array, b: jax.Array, i: int, j: int, dtype: Any) -> jax.Array:
    """The batched product of matrices, summed over axis i of a and axis j of b."""
    lead = tuple(range(a.ndim - 2))
    axes = (((i % a.ndim,), (j % b.ndim,)), (lead, lead))
    return lax.dot_general(a, b, axes, preferred_element_type=dtype)


def _rows(ok: jax.Array, z: jax.Array) -> jax.Array:
    """ok [.., T, S] for scores [.., n * T, S]: the query heads of one key head see the same."""
    n = z.shape[-2] // ok.shape[-2]
    ok = jnp.broadcast_to(ok[..., None, :, :], (*ok.shape[:-2], n, *ok.shape[-2:]))
    return ok.reshape(*ok.shape[:-3], z.shape[-2], z.shape[-1])


@rule(ops.AttendCached, lazy=Default)
def attend_cached(
    call: Call, q: jax.Array, k: jax.Array, v: jax.Array, keys: jax.Array, values: jax.Array, length: Any, count: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    length, count = (c.array() if isinstance(c, Default) else c for c in (length, count))
    slots, new, op = keys.shape[2], q.shape[1], call.op
    i, j = jnp.arange(new, dtype=jnp.int32), jnp.arange(slots, dtype=jnp.int32)
    start, end = length[:, None], (length + count)[:, None]

    def held(stop: jax.Array) -> jax.Array:
        """The position in each slot once positions below `stop` are written; negative: none."""
        return (stop - 1) - jnp.mod(stop - 1 - j, slots)

    def write(cache: jax.Array, fresh: jax.Array) -> jax.Array:
        # Entry n goes to its slot unless it is padding or a later entry of the chunk takes that slot.
        live = (i < count[:, None]) & (i >= count[:, None] - slots)
        slot = jnp.where(live, jnp.mod(start + i, slots), slots)
        rows = jnp.arange(q.shape[0])[:, None]
        return cache.at[rows, :, slot].set(fresh.astype(cache.dtype), mode="drop", unique_indices=True)

    new_keys, new_values = write(keys, k), write(values, v)
    if new == 1 or op.window is None:
        # A single entry, or slots for all: what it overwrites no query of the chunk sees.
        where = held(end)
        visible = seen(op, start + i, where) & (where >= 0)[:, None, :]
        out = cached_core(call, q, [(new_keys, new_values)], visible)
    else:
        where = jnp.concatenate([held(start), start + i], 1)
        valid = jnp.concatenate([held(start) >= 0, i < count[:, None]], 1)
        visible = seen(op, start + i, where) & valid[:, None, :]
        chunk = (k.swapaxes(1, 2).astype(keys.dtype), v.swapaxes(1, 2).astype(values.dtype))
        out = cached_core(call, q, [(keys, values), chunk], visible)
    return out, new_keys, new_values


def cached_core(call: Call, q: jax.Array, parts: list[tuple[jax.Array, jax.Array]], visible: jax.Array) -> jax.Array:
    """q [B, T, H, D] over parts of keys and values, each [B, K, S, D]; visible [B, T, all S]."""
    op, wide = call.op, DTYPES[call.policy.wide]
    shared = parts[0][0].shape[1]
    q = (q * op.scale).reshape(*q.shape[:2], shared, -1, q.shape[-1])
    scores = [jnp.einsum("btkgd,bksd->bkgts", q, k, preferred_element_type=wide) for k, _ in parts]
    s = scores[0] if len(scores) == 1 else jnp.concatenate(scores, -1)
    if op.softcap:
        s = op.softcap * jnp.tanh(s * (1 / op.softcap))
    p = jax.nn.softmax(jnp.where(visible[:, None, None], s, ops.HIDDEN), -1)
    out, at = None, 0
    for _, v in parts:
        o = jnp.einsum("bkgts,bksd->btkgd", lax.slice_in_dim(p, at, at + v.shape[2], axis=-1).astype(v.dtype), v)
        out, at = o if out is None else out + o, at + v.shape[2]
    assert out is not None
    return out.reshape(*out.shape[:2], -1, out.shape[-1])
