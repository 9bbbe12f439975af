"""Attention with a cache of earlier keys and values."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp

from planform.compiler.ops import attention as ops

from ..policy import DTYPES
from .attention import by_key_head, by_query_head, over_rows, product, seen
from .contract import Call, Default, rule


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

    new_keys, new_values = (write(c, a, length, count) for c, a in ((keys, k), (values, v)))
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


def write(cache: jax.Array, fresh: jax.Array, length: jax.Array, count: jax.Array) -> jax.Array:
    """The cache [B, K, S, D] with the entries [B, T, K, D] of a chunk in their slots."""
    rows, new, slots = fresh.shape[0], fresh.shape[1], cache.shape[2]
    fresh = fresh.astype(cache.dtype)
    i = jnp.arange(new, dtype=jnp.int32)
    # Entry n goes to its slot unless it is padding or a later entry of the chunk takes that slot.
    live = (i < count[:, None]) & (i >= count[:, None] - slots)
    slot = jnp.where(live, jnp.mod(length[:, None] + i, slots), slots)
    return cache.at[jnp.arange(rows)[:, None], :, slot].set(fresh, mode="drop")


def cached_core(call: Call, q: jax.Array, parts: list[tuple[jax.Array, jax.Array]], visible: jax.Array) -> jax.Array:
    """q [B, T, H, D] over parts of keys and values, each [B, K, S, D]; visible [B, T, all S]."""
    op, wide, shared = call.op, DTYPES[call.policy.wide], parts[0][0].shape[1]
    rows = by_key_head(q * op.scale, shared)
    s = jnp.concatenate([_scores(rows, k, wide) for k, _ in parts], -1)
    if op.softcap:
        s = op.softcap * jnp.tanh(s * (1 / op.softcap))
    p = jax.nn.softmax(jnp.where(over_rows(visible[:, None], s), s, ops.HIDDEN), -1)
    shares = jnp.split(p, list(accumulate(v.shape[2] for _, v in parts))[:-1], -1)
    mixtures = [_mixture(share, v, wide) for share, (_, v) in zip(shares, parts, strict=True)]
    out = sum(mixtures[1:], start=mixtures[0])
    return by_query_head(out, q.shape[2] // shared)


FEW = 4
"""Up to so many rows, products with a cache are loops: for a product XLA copies the cache that was written."""


def _scores(q: jax.Array, k: jax.Array, dtype: Any) -> jax.Array:
    """q k^T for q [.., T, D] and k [.., S, D]."""
    if q.shape[-2] > FEW:
        return product(q, k, -1, -1, dtype)
    return jnp.sum(q[..., :, None, :].astype(dtype) * k[..., None, :, :].astype(dtype), -1)


def _mixture(p: jax.Array, v: jax.Array, dtype: Any) -> jax.Array:
    """p v for p [.., T, S] and v [.., S, D]."""
    if p.shape[-2] > FEW:
        return product(p.astype(v.dtype), v, -1, -2, dtype)
    return jnp.sum(p[..., None] * v[..., None, :, :].astype(dtype), -2)
