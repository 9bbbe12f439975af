"""Sums of rows: a norm's statistics and the gradient of its scale."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from .contract import Call

Total = Callable[[jax.Array], jax.Array]
"""The sums of x [groups, .., d] over all but its first and last dims, which stay as ones."""


def by_sum(x: jax.Array) -> jax.Array:
    return jnp.sum(x, range(1, x.ndim - 1), keepdims=True)


def by_product(x: jax.Array) -> jax.Array:
    """The sums as products with ones: XLA on CPUs takes other sums of tall arrays on one core, at 0.5 GB/s. In up to 64
    parts, side by side in a row, so that a sum's error grows with the parts' lengths."""
    groups, d, rows = x.shape[0], x.shape[-1], math.prod(x.shape[1:-1])
    parts = math.gcd(rows, 64)
    flat = x.reshape(groups, rows // parts, parts * d)
    ones = jnp.ones((groups, 1, rows // parts), x.dtype)
    found = lax.dot_general(ones, flat, (((2,), (1,)), ((0,), (0,))))
    return found.reshape(groups, parts, d).sum(1).reshape(groups, *[1] * (x.ndim - 2), d)


def total_of(call: Call) -> Total:
    """The faster one where the graph runs. Devices that share an example's rows would take them to each other for rows
    side by side."""
    shared = any(call.split(call.inputs[0])[1:-1])
    return by_product if call.policy.platform == "cpu" and not shared else by_sum
