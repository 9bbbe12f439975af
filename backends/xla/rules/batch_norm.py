"""Batch normalisation; by the batch's own statistics with a gradient that goes through x as seldom as it can."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from planform.compiler.ops.batch_norm import BatchNorm, BatchNormTraining

from .contract import Call, rule


@rule(BatchNorm, floats="wide")
def batch_norm(call: Call, x: jax.Array, *rest: jax.Array) -> jax.Array:
    *affine, mean, variance = rest
    y = (x - mean) * lax.rsqrt(variance + call.op.epsilon)
    return y * affine[0] + affine[1] if affine else y


@rule(BatchNormTraining, floats="wide")
def batch_norm_training(call: Call, x: jax.Array, *rest: jax.Array) -> tuple[jax.Array, ...]:
    *affine, mean, variance = rest
    scale, bias = affine or (jnp.ones_like(mean), jnp.zeros_like(mean))
    rows = x.reshape(call.op.groups, -1, *x.shape[1:])
    total = by_product if call.policy.platform == "cpu" else by_sum
    y, m, v = normalised(call.op.epsilon, total, rows, scale, bias)
    new = (jnp.mean(s.reshape(-1, s.shape[-1]), 0) for s in (m, v))
    after = (old + (1 - call.op.decay) * (now - old) for old, now in zip((mean, variance), new))
    return (y.reshape(x.shape), *after)


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


Three = tuple[jax.Array, jax.Array, jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def normalised(epsilon: float, total: Total, x: jax.Array, scale: jax.Array, bias: jax.Array) -> Three:
    """x [groups, .., d] by the statistics of each group, times scale, plus bias; and those, mean and variance.

    Left to itself, XLA goes through x four times for the gradient of the mean of squares of what is centred; and
    nothing fuses into its sums on CPUs but a product, so that what is centred would be written out for them.
    """
    count = math.prod(x.shape[1:-1])
    m, squares = (total(a) / count for a in (x, x * x))
    # A mean of more than ten deviations would cost a variance by difference more than two digits.
    far = jnp.any(squares - m * m < 1e-2 * squares)
    v = lax.cond(far, lambda: total(jnp.square(x - m)) / count, lambda: squares - m * m)
    return (x - m) * (lax.rsqrt(v + epsilon) * scale) + bias, m, v


def _forward(
    epsilon: float, total: Total, x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[Three, tuple[jax.Array, ...]]:
    y, m, v = normalised(epsilon, total, x, scale, bias)
    return (y, m, v), (x, scale, m, lax.rsqrt(v + epsilon))


def _backward(epsilon: float, total: Total, kept: tuple[jax.Array, ...], above: Three) -> Three:
    (x, scale, m, r), (dy, dm, dv) = kept, above
    count = math.prod(x.shape[1:-1])
    plain, along = (total(a) for a in (dy, dy * x))
    along -= m * plain
    # dx = scale r (dy - mean of dy - xhat times mean of dy xhat), and what flows into the statistics themselves.
    slope = (2 * dv - scale * r * r * r * along) / count
    dx = (scale * r) * dy + slope * (x - m) + (dm - scale * r * plain) / count
    groups = tuple(range(x.ndim - 1))
    return dx, jnp.sum(along * r, groups), jnp.sum(plain, groups)


normalised.defvjp(_forward, _backward)
