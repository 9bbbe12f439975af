"""Rotary positions and attention. Masks are predicates, never arrays that somebody keeps."""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from planform.compiler.ops import attention as ops

from ..policy import DTYPES, wide
from .contract import Call, Default, rule


def angles(call: Call, position: Any, half: int, base: float) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) of the rotary angles, [.., time, 1, half]; every layer shares them.

    Those of 0, 1, 2 .. are constants: XLA on CPUs would compute them in each product's operand, for each head anew.
    """
    key = ("rope", id(position), half, base)
    if key not in call.shared:
        wide = DTYPES[call.policy.wide]
        time = position.type.shape({})[-1] if isinstance(position, Default) and position.kind == "iota" else None
        if time is not None and time * half <= CONSTANT:
            turned = ops.rope_angles(np.arange(time), half, base)[:, None]
            cos, sin = (jnp.asarray(f(turned), wide) for f in (np.cos, np.sin))
        else:
            where = position if time is None else jnp.arange(time)
            where = where.array() if isinstance(where, Default) else where
            parts = [
                ((where >> shift) & 255)[..., None].astype(wide) * turn.astype(wide)
                for shift, turn in _turns(half, base)
            ]
            angle = functools.reduce(operator.add, parts)[..., None, :]
            cos, sin = jnp.cos(angle), jnp.sin(angle)
        # The position is kept beside its angles, so that its id is no other value's.
        call.shared[key] = (cos, sin, position)
    cos, sin, _ = call.shared[key]
    return cos, sin


CONSTANT = 1 << 20
"""The most angles that a program holds: 8,192 positions of heads of 256."""


def _turns(half: int, base: float) -> list[tuple[int, np.ndarray]]:
    """(shift, angle of 1 << shift entries, less whole turns): a position's angle from its digits. The product of a
    position and a rate in float32 is wrong by 5e-4 at 8,000 entries and by a turn after a few millions."""
    rates = ops.rope_angles(np.ones(()), half, base)
    return [(shift, np.remainder(rates * 2.0**shift + np.pi, 2 * np.pi) - np.pi) for shift in (0, 8, 16, 24)]


@rule(ops.Rope, lazy=Default, floats="own")
def rope(call: Call, x: jax.Array, position: Any) -> jax.Array:
    half = call.op.half(call.inputs[0])
    cos, sin = angles(call, position, half, call.op.base)
    return rotate(x, cos, sin)


@jax.custom_vjp
def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """x with its pairs (i, i + half) turned by the angles; turned back, for the gradient.

    As a sum over whole heads, which XLA on CPUs computes in vectors, as it doesn't a concatenation of sums.
    """
    half = cos.shape[-1]
    pairs, rest = x[..., : 2 * half], x[..., 2 * half :]
    cos, sin = jnp.concatenate([cos, cos], -1), jnp.concatenate([-sin, sin], -1)
    turned = (pairs * cos + jnp.roll(pairs, half, -1) * sin).astype(x.dtype)
    return jnp.concatenate([turned, rest], -1) if rest.shape[-1] else turned


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
    op = call.op
    positions, documents = _where(given)
    queries, keys = (jnp.arange(a.shape[-3]) if positions is None else positions for a in (q, k))

    def part(rows: slice, columns: slice) -> jax.Array:
        """What these queries get from these keys."""
        ok = seen(op, queries[..., rows], keys[..., columns])
        if documents is not None:
            ok &= documents[..., rows, None] == documents[..., None, columns]
        return core(call, q[..., rows, :, :], k[..., columns, :, :], v[..., columns, :, :], ok)

    n = _causal_blocks(call, q.shape[-3]) if positions is None and q.shape[-3] == k.shape[-3] else 1
    size = q.shape[-3] // n
    # A block sees nothing that comes after it, nor what its window has left behind.
    first = [max(0, i * size - op.window + 1) if op.window else 0 for i in range(n)]
    blocks = [part(slice(i * size, (i + 1) * size), slice(first[i], (i + 1) * size)) for i in range(n)]
    return blocks[0] if n == 1 else jnp.concatenate(blocks, -3)


def _causal_blocks(call: Call, time: int) -> int:
    """How many blocks of queries causal attention is taken in: at most 4 of 128 or more, on CPUs, where a score less is
    time less; that an accelerator gains by smaller products isn't measured."""
    if not call.op.causal or call.policy.platform != "cpu" or call.devices(call.inputs[0], -3) > 1:
        return 1
    return max((n for n in range(1, min(4, time // 128) + 1) if time % n == 0), default=1)


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
    keys = index[:, :1] - back * block + jnp.arange((back + 1) * block)
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
    shared = k.shape[-2]
    k, v = k.swapaxes(-3, -2), v.swapaxes(-3, -2)
    out = softmax_product(by_key_head(q * call.op.scale, shared), k, v, ok[..., None, :, :], call.op.softcap)
    return by_query_head(out, q.shape[-2] // shared)


def by_key_head(q: jax.Array, shared: int) -> jax.Array:
    """[.., T, K * n, D] as [.., K, n * T, D]: the queries of one key head as one matrix."""
    *lead, time, heads, d = q.shape
    q = jnp.moveaxis(q.reshape(*lead, time, shared, heads // shared, d), -4, -2)
    return q.reshape(*lead, shared, heads // shared * time, d)


def by_query_head(out: jax.Array, n: int) -> jax.Array:
    """[.., K, n * T, D] as [.., T, K * n, D]."""
    *lead, shared, rows, d = out.shape
    out = jnp.moveaxis(out.reshape(*lead, shared, n, rows // n, d), -2, -4)
    return out.reshape(*lead, rows // n, shared * n, d)


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
    dtype = wide(q)
    z = product(q, k, -1, -1, dtype)
    if cap:
        z = jnp.tanh(z * (1 / cap))
    # Behind a cap, a hidden score is one whose exponential is 0 and whose tanh' is still finite.
    z = jnp.where(over_rows(ok, z), z, -1e4 / min(cap, 1.0) if cap else ops.HIDDEN)
    if cap and cap <= MOST:
        p = jnp.exp(z * cap)  # within float32's range as it is
        total = jnp.maximum(jnp.sum(p, -1, keepdims=True), 1e-30)  # a row may see nothing: padding
        logs = jnp.log(total)
    else:
        high = jnp.max(z, -1, keepdims=True) * (cap or 1)
        p = jnp.exp(z * (cap or 1) - high)
        total = jnp.sum(p, -1, keepdims=True)
        logs = jnp.log(total) + high
    out = (product(p.astype(v.dtype), v, -1, -2, dtype) / total).astype(v.dtype)
    return out, (q, k, v, z, logs, out)


MOST = 60.0
"""The largest cap c for which sums of exp(c) over a context stay far inside float32's range."""


def _attention_gradient(cap: float | None, kept: tuple[jax.Array, ...], dout: jax.Array) -> tuple[Any, ...]:
    q, k, v, z, logs, out = kept
    wide = z.dtype
    p = jnp.exp(z * (cap or 1) - logs)
    dp = product(dout, v, -1, -1, wide)
    ds = p * (dp - jnp.sum(dout.astype(wide) * out.astype(wide), -1, keepdims=True))
    if cap:
        ds = ds * (1 - z * z)
    ds, p = ds.astype(q.dtype), p.astype(v.dtype)
    dq = product(ds, k, -1, -2, q.dtype)
    # Of the two factors the narrow one is transposed.
    dk = product(q.swapaxes(-1, -2), ds, -1, -2, k.dtype).swapaxes(-1, -2)
    dv = product(dout.swapaxes(-1, -2), p, -1, -2, v.dtype).swapaxes(-1, -2)
    return dq, dk, dv, None


softmax_product.defvjp(_attention, _attention_gradient)


def product(a: jax.Array, b: jax.Array, i: int, j: int, dtype: Any) -> jax.Array:
    """The batched product of matrices, summed over axis i of a and axis j of b."""
    lead = tuple(range(a.ndim - 2))
    axes = (((i % a.ndim,), (j % b.ndim,)), (lead, lead))
    return lax.dot_general(a, b, axes, preferred_element_type=dtype)


def over_rows(ok: jax.Array, z: jax.Array) -> jax.Array:
    """ok [.., T, S] for scores [.., n * T, S]: the query heads of one key head see the same."""
    n = z.shape[-2] // ok.shape[-2]
    ok = jnp.broadcast_to(ok[..., None, :, :], (*ok.shape[:-2], n, *ok.shape[-2:]))
    return ok.reshape(*ok.shape[:-3], z.shape[-2], z.shape[-1])
