"""Recurrences along the stream, in the form that is fastest on the platform, with their own gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from planform.compiler.ops import recurrence as ops

from .contract import Call, Default, rule

CHUNK = 32
"""Entries of a chunk: so many steps over all chunks at once, then a step a chunk."""


@rule(ops.LogDecay, floats="wide")
def log_decay(call: Call, x: jax.Array, rate: jax.Array) -> jax.Array:
    return x * (-call.op.c * jax.nn.softplus(rate))


@rule(ops.LinearRecurrence, floats="wide", lazy=Default)
def linear_recurrence(call: Call, x: jax.Array, log_a: jax.Array, position: Any) -> jax.Array:
    time = jnp.arange(x.shape[1], dtype=jnp.int32)[None] if isinstance(position, Default) else position
    a, b = _coefficients(call, x, log_a, time == 0)
    return recur(form_of(call, x.shape), a, b, jnp.zeros_like(x[:, 0]))


@rule(ops.LinearRecurrenceCached, floats="wide", lazy=Default)
def linear_recurrence_cached(
    call: Call, x: jax.Array, log_a: jax.Array, state: jax.Array, length: Any, count: Any
) -> tuple[jax.Array, jax.Array]:
    length = length.array() if isinstance(length, Default) else length
    i = jnp.arange(x.shape[1], dtype=jnp.int32)
    a, b = _coefficients(call, x, log_a, length[:, None] + i == 0)
    if not isinstance(count, Default):  # padding hands the state on as it is
        valid = _over(i < count[:, None], x)
        a, b = jnp.where(valid, a, 1), jnp.where(valid, b, 0)
    if x.shape[1] == 1:
        h = a[:, 0] * state + b[:, 0]
        return h[:, None], h
    h = recur(form_of(call, x.shape), a, b, state)
    return h, h[:, -1]


def _coefficients(call: Call, x: jax.Array, log_a: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
    """a and b of h = a h + b; first: bool[batch or 1, time], where nothing of what came before counts."""
    new = _over(first, x)
    a = jnp.exp(log_a)
    # -expm1 and not 1 - a^2: as a comes near 1, the difference of two rounded numbers is mostly rounding.
    b = jnp.where(new, x, x * bounded_sqrt(-jnp.expm1(2 * log_a))) if call.op.normalise else x
    return jnp.where(new, 0, a), b


def _over(mask: jax.Array, x: jax.Array) -> jax.Array:
    return mask.reshape(*mask.shape, *[1] * (x.ndim - 2))


@jax.custom_jvp
def bounded_sqrt(x: jax.Array) -> jax.Array:
    """sqrt(x), with a derivative of at most `GRADIENT_BOUND`."""
    return jnp.sqrt(x)


@bounded_sqrt.defjvp
def _bounded_sqrt_slope(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    return jnp.sqrt(x), dx * 0.5 * lax.rsqrt(jnp.maximum(x, 0.25 / ops.GRADIENT_BOUND**2))


# -- h_t = a_t h_(t-1) + b_t ------------------------------------------------------------------------------------

Form = Callable[[jax.Array, jax.Array, jax.Array, bool], jax.Array]
"""(a, b, both [time, ..], what stands before the first entry [..], whether from the end) -> h [time, ..]."""


def sequential(a: jax.Array, b: jax.Array, h: jax.Array, reverse: bool = False) -> jax.Array:
    """One step an entry."""

    def step(h: jax.Array, ab: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        h = ab[0] * h + ab[1]
        return h, h

    return lax.scan(step, h, (a, b), reverse=reverse, unroll=8)[1]


def associative(a: jax.Array, b: jax.Array, h: jax.Array, reverse: bool = False) -> jax.Array:
    """A tree of depth log(time) (Blelloch, 1990)."""

    def join(left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    at = -1 if reverse else 0
    b = b.at[at].add(a[at] * h)
    return lax.associative_scan(join, (a, b), reverse=reverse)[1]


def chunked(a: jax.Array, b: jax.Array, h: jax.Array, reverse: bool = False) -> jax.Array:
    """Steps within all chunks at once from zero, a step a chunk for what they hand on, and that added to each."""
    time = a.shape[0]
    size = min(CHUNK, time)
    pad = -time % size
    widths = [(pad, 0) if reverse else (0, pad), *[(0, 0)] * (a.ndim - 1)]
    a, b = jnp.pad(a, widths, constant_values=1), jnp.pad(b, widths)
    a, b = (x.reshape(-1, size, *x.shape[1:]).swapaxes(0, 1) for x in (a, b))  # [size, chunks, ..]

    def within(carry: Any, ab: tuple[jax.Array, jax.Array]) -> Any:
        decay, h = carry
        decay, h = decay * ab[0], ab[0] * h + ab[1]
        return (decay, h), (decay, h)

    start = (jnp.ones_like(a[0]), jnp.zeros_like(b[0]))
    (last_decay, last), (decay, local) = lax.scan(within, start, (a, b), reverse=reverse, unroll=8)

    def across(h: jax.Array, ab: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return ab[0] * h + ab[1], h

    before = lax.scan(across, h, (last_decay, last), reverse=reverse)[1]
    out = (local + decay * before).swapaxes(0, 1).reshape(-1, *a.shape[2:])
    return out[pad:] if reverse else out[:time]


FORMS: dict[str, Form] = {"sequential": sequential, "associative": associative, "chunked": chunked}


def form_of(call: Call, shape: tuple[int, ...]) -> str:
    """The form that a policy asks for, or the one that measures fastest on its platform (README.md)."""
    return call.policy.recurrence or ("sequential" if call.policy.platform == "cpu" else "associative")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def recur(form: str, a: jax.Array, b: jax.Array, before: jax.Array) -> jax.Array:
    """h [batch, time, ..] for a and b of that shape, `before` [batch, ..] standing before the first entry."""
    return _forward(form, a, b, before)[0]


def _forward(form: str, a: jax.Array, b: jax.Array, before: jax.Array) -> tuple[jax.Array, Any]:
    h = FORMS[form](a.swapaxes(0, 1), b.swapaxes(0, 1), before, False)
    return h.swapaxes(0, 1), (a, h, before)


def _backward(form: str, kept: Any, dh: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradient of a recurrence is one, from the end: g_t = dh_t + a_(t+1) g_(t+1)."""
    a, h, before = kept
    a = a.swapaxes(0, 1)
    after = jnp.concatenate([a[1:], jnp.zeros_like(a[:1])])
    g = FORMS[form](after, dh.swapaxes(0, 1), jnp.zeros_like(before), True)
    da = g * jnp.concatenate([before[None], h[:-1]])
    return da.swapaxes(0, 1), g.swapaxes(0, 1), a[0] * g[0]


recur.defvjp(_forward, _backward)


# -- convolutions and block-diagonal products -------------------------------------------------------------------


@rule(ops.Conv1d, lazy=Default)
def conv1d(call: Call, x: jax.Array, weight: jax.Array, *rest: Any) -> jax.Array:
    *bias, position = rest
    before = [(0, 0), (call.op.width - 1, 0), *[(0, 0)] * (x.ndim - 2)]
    # By default positions run from 0 in every row, and what stands before them is zero already.
    seen = None if isinstance(position, Default) else position
    return _taps(call, jnp.pad(x, before), weight, bias, seen)


@rule(ops.Conv1dCached, lazy=Default)
def conv1d_cached(call: Call, *values: Any) -> tuple[jax.Array, jax.Array]:
    x, weight, bias, kept, _, count = call.op.arguments(values)
    both = jnp.concatenate([kept.astype(x.dtype), x], 1)
    y = _taps(call, both, weight, bias, None)
    if isinstance(count, Default):
        return y, both[:, x.shape[1] :]
    rows = count[:, None] + jnp.arange(call.op.width - 1, dtype=jnp.int32)
    return y, jnp.take_along_axis(both, _over(rows, both), 1)


def _taps(call: Call, x: jax.Array, weight: jax.Array, bias: list[jax.Array], seen: jax.Array | None) -> jax.Array:
    width = call.op.width
    time = x.shape[1] - width + 1
    y: Any = bias[0] if bias else 0
    for s in range(width):
        tap = lax.slice_in_dim(x, width - 1 - s, width - 1 - s + time, axis=1)
        if seen is not None and s:
            tap = jnp.where(_over(seen >= s, x), tap, 0)
        y = y + tap * weight[width - 1 - s]
    return y


@rule(ops.BlockLinear)
def block_linear(call: Call, x: jax.Array, weight: jax.Array, *bias: jax.Array) -> jax.Array:
    parts = x.reshape(*x.shape[:-1], call.op.blocks, -1)
    y = jnp.einsum("...hi,hij->...hj", parts, weight).reshape(x.shape)
    return y + bias[0] if bias else y
