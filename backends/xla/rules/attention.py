"""Rotary positions and attention. Masks are predicates, never arrays that somebody keeps."""

from __future__ import annotations

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


@rule(ops.Rope, defaults=True, floats="own")
def rope(call: Call, x: jax.Array, position: Any) -> jax.Array:
    half = call.op.half(call.inputs[0])
    cos, sin = angles(call, position, half, call.op.base)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)
    return jnp.concatenate([turned, rest], -1) if rest.shape[-1] else turned


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


def core(call: Call, q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
    """q [.., T, H, D], k and v [.., S, K, D], visible [.., T, S] -> [.., T, H, Dv]."""
    op, wide = call.op, DTYPES[call.policy.wide]
    shared, n = k.shape[-2], q.shape[-2] // k.shape[-2]
    q = (q * op.scale).reshape(*q.shape[:-2], shared, n, q.shape[-1])
    s = jnp.einsum("...tkgd,...skd->...kgts", q, k, preferred_element_type=wide)
    if op.softcap:
        s = op.softcap * jnp.tanh(s * (1 / op.softcap))
    s = jnp.where(visible[..., None, None, :, :], s, ops.HIDDEN)
    p = jax.nn.softmax(s, -1).astype(v.dtype)
    out = jnp.einsum("...kgts,...skd->...tkgd", p, v)
    return out.reshape(*out.shape[:-3], shared * n, v.shape[-1])


@rule(ops.Attend, defaults=True)
def attend(call: Call, q: jax.Array, k: jax.Array, v: jax.Array, *where: Any) -> jax.Array:
    position, document = where if where else (None, None)
    if position is None or isinstance(position, Default):
        visible = seen(call.op, jnp.arange(q.shape[-3]), jnp.arange(k.shape[-3]))
    else:
        visible = seen(call.op, position, position)
    if document is not None and not isinstance(document, Default):
        visible &= document[..., :, None] == document[..., None, :]
    return core(call, q, k, v, visible)


@rule(ops.AttendCached, defaults=True)
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
