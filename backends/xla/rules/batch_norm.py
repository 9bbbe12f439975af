"""Batch normalisation; by the batch's own statistics with a gradient that goes through x as seldom as it can."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from planform.compiler.ops.batch_norm import BatchNorm, BatchNormTraining

from .contract import Call, rule
from .sums import Total, total_of


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
    y, m, v = normalised(call.op.epsilon, total_of(call), rows, scale, bias)
    new = (jnp.mean(s.reshape(-1, s.shape[-1]), 0) for s in (m, v))
    after = (old + (1 - call.op.decay) * (now - old) for old, now in zip((mean, variance), new))
    return (y.reshape(x.shape), *after)


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
