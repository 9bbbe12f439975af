"""Fields: the sine of a SIREN, which is most of what one costs."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from planform.compiler.ops.field import Sine

from .contract import Call, rule

_PI = tuple(np.float32(p) for p in (3.140625, 9.670257568359375e-4, 6.2771141529083252e-7))
"""pi in three parts, the first two short enough that their products with whole and half numbers are exact."""
_SINE = tuple(np.float32(c) for c in (-2.3889859e-08, 2.7525562e-06, -1.9840874e-04, 8.3333310e-03, -1.6666667e-01))
"""sin(r) = r + r^3 P(r^2) for |r| <= pi / 2, the highest power first: within 1.3e-7."""


@rule(Sine)
def sine(call: Call, x: jax.Array) -> jax.Array:
    angle = x * call.op.w0
    if call.policy.platform == "cpu" and angle.dtype == jnp.float32:
        return turned(angle, call.op.quarters % 4)
    return jnp.sin(angle + call.op.quarters * (math.pi / 2)) if call.op.quarters else jnp.sin(angle)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def turned(x: jax.Array, quarters: int) -> jax.Array:
    """sin(x + quarters * pi / 2) in float32, as plain arithmetic that XLA vectorises on CPU; its own sine is a call for
    each number. Where angles are so large that this is less exact, their rounding, in the product with w0, costs more.
    """
    half = np.float32(quarters / 2)
    k = jnp.round(x * np.float32(1 / math.pi) + half)
    r = x
    for part in _PI:
        r = r - (k - half) * part
    square = r * r
    p = jnp.full_like(square, _SINE[0])
    for c in _SINE[1:]:
        p = p * square + c
    odd = lax.shift_left(k.astype(jnp.int32), 31)
    return lax.bitcast_convert_type(lax.bitcast_convert_type(r + r * square * p, jnp.int32) ^ odd, jnp.float32)


@turned.defjvp
def _turned_slope(quarters: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    return turned(x, quarters), dx * turned(x, (quarters + 1) % 4)
