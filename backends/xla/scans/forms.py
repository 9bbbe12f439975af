"""h_t = a_t h_(t-1) + b_t: its forms, and one gradient for all of them.

Arrays are [batch, time, ..], what goes in and out at the ends is [batch, ..]. From the end it is what a gradient needs,
g_t = b_t + a_(t+1) g_(t+1), where the last entry adds what comes in behind it and a_0 g_0 goes out in front.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Pair = tuple[jax.Array, jax.Array]
Form = Callable[[jax.Array, jax.Array, jax.Array, bool], Pair]
"""(a, b, what comes in, whether from the end) -> (h, what goes out)."""


def sequential(a: jax.Array, b: jax.Array, carry: jax.Array, reverse: bool = False) -> Pair:
    """One step an entry, each written over the b it has read: nothing is transposed, stacked or allocated.

    Exactly one step a turn: with two, XLA no longer sees that nothing is read after it is written, and copies.
    """
    time = a.shape[1]

    def step(i: jax.Array, held: Pair) -> Pair:
        h, out = held
        t = time - 1 - i if reverse else i
        h = _at(a, t + reverse) * h + _at(out, t)
        return h, lax.dynamic_update_slice_in_dim(out, h, t, 1, allow_negative_indices=False)

    end = jnp.int32(time)  # as floats get 64 bits, a counter shouldn't
    if not reverse:
        last, h = lax.fori_loop(jnp.int32(0), end, step, (carry[:, None], b))
        return h, last[:, 0]
    b = _added(b, time - 1, carry)
    first, g = lax.fori_loop(jnp.int32(1), end, step, (b[:, -1:], b))
    return g, a[:, 0] * first[:, 0]


def _at(x: jax.Array, t: Any) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, t, 1, 1, allow_negative_indices=False)


def _added(b: jax.Array, t: int, x: jax.Array) -> jax.Array:
    """b with x added to its entry t."""
    return lax.dynamic_update_slice_in_dim(b, b[:, t : t + 1] + x[:, None], t, 1)


def associative(a: jax.Array, b: jax.Array, carry: jax.Array, reverse: bool = False) -> Pair:
    """A tree of depth log(time) (Blelloch, 1990)."""

    def join(left: Pair, right: Pair) -> Pair:
        return left[0] * right[0], right[0] * left[1] + right[1]

    if not reverse:
        h = lax.associative_scan(join, (a, _added(b, 0, a[:, 0] * carry)), axis=1)[1]
        return h, h[:, -1]
    after = jnp.concatenate([a[:, 1:], jnp.zeros_like(a[:, :1])], 1)
    g = lax.associative_scan(join, (after, _added(b, b.shape[1] - 1, carry)), reverse=True, axis=1)[1]
    return g, a[:, 0] * g[:, 0]


FORMS: dict[str, Form] = {"sequential": sequential, "associative": associative}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def recur(form: str, reverse: bool, a: jax.Array, b: jax.Array, carry: jax.Array) -> Pair:
    """(h, what goes out), with a gradient that is the recurrence from the other end."""
    return FORMS[form](a, b, carry, reverse)


def _forward(form: str, reverse: bool, a: jax.Array, b: jax.Array, carry: jax.Array) -> tuple[Pair, Any]:
    found = recur(form, reverse, a, b, carry)
    return found, (a, carry, found[0])


def _backward(form: str, reverse: bool, kept: Any, slopes: Pair) -> tuple[jax.Array, jax.Array, jax.Array]:
    a, carry, h = kept
    db, dcarry = recur(form, not reverse, a, *slopes)
    # From the end, db has what comes in in front of it, and that is the slope of what goes out there.
    da = before(slopes[1], db) * h if reverse else db * before(carry, h)
    return da, db, dcarry


recur.defvjp(_forward, _backward)


def before(carry: jax.Array, h: jax.Array) -> jax.Array:
    """h_(t-1) for every t."""
    return jnp.concatenate([carry[:, None], h[:, :-1]], 1)
