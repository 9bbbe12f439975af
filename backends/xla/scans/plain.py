"""The recurrence in XLA's own ops, by any form of h_t = a_t h_(t-1) + b_t."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from planform.compiler.ops.recurrence import GRADIENT_BOUND

from ..policy import wide
from .decayed import Triple
from .forms import Pair, before, recur


@dataclass(frozen=True)
class Plain:
    """A `Run` by one of `FORMS`. The gradient keeps x, log_a and h, and computes a and s once more."""

    form: str
    normalise: bool

    def forward(self, x: jax.Array, log_a: jax.Array, carry: jax.Array) -> Pair:
        h, last = recur(self.form, False, *self.coefficients(x, log_a), carry)
        return h.astype(x.dtype), last

    def backward(self, x: jax.Array, log_a: jax.Array, carry: jax.Array, h: jax.Array, dh: jax.Array,
                 dlast: jax.Array) -> Triple:  # fmt: skip
        dtype = wide(x)
        a = jnp.exp(log_a.astype(dtype))
        g, dcarry = recur(self.form, True, a, dh.astype(dtype), dlast)
        dx, slope = g, a * before(carry, h.astype(dtype))
        if self.normalise:
            z = left_over(log_a.astype(dtype))
            dx = g * bounded_sqrt(z)
            slope = slope - x.astype(dtype) * 2 * a * a * slope_of_sqrt(z)
        return dx.astype(x.dtype), (g * slope).astype(log_a.dtype), dcarry

    def handed_on(self, x: jax.Array, log_a: jax.Array) -> jax.Array:
        a, b = self.coefficients(x, log_a)
        return recur(self.form, False, a, b, jnp.zeros_like(b[:, 0]))[1]

    def handed_back(self, log_a: jax.Array, dh: jax.Array) -> jax.Array:
        dh = dh.astype(wide(dh))
        return recur(self.form, True, jnp.exp(log_a.astype(dh.dtype)), dh, jnp.zeros_like(dh[:, 0]))[1]

    def coefficients(self, x: jax.Array, log_a: jax.Array) -> Pair:
        """a and b."""
        x, log_a = x.astype(wide(x)), log_a.astype(wide(x))
        return jnp.exp(log_a), x * bounded_sqrt(left_over(log_a)) if self.normalise else x


def left_over(log_a: jax.Array) -> jax.Array:
    """1 - a^2. As a comes near 1, the difference of two rounded numbers would be mostly rounding; -expm1(2 log a) would
    do, but on a CPU it takes twice as long."""
    t = jnp.tanh(log_a)
    return -2 * t / (1 - t)


@jax.custom_jvp
def bounded_sqrt(x: jax.Array) -> jax.Array:
    """sqrt(x), with a derivative of at most `GRADIENT_BOUND`."""
    return jnp.sqrt(x)


@bounded_sqrt.defjvp
def _bounded_sqrt_slope(primals: Any, tangents: Any) -> Pair:
    (x,), (dx,) = primals, tangents
    return jnp.sqrt(x), dx * slope_of_sqrt(x)


def slope_of_sqrt(x: jax.Array) -> jax.Array:
    return 0.5 * lax.rsqrt(jnp.maximum(x, LEAST))


LEAST = 0.25 / GRADIENT_BOUND**2
"""Where sqrt has the largest slope that it is given."""
