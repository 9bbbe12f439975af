"""Activations that gate: act(x) * y as one function, whose gradient keeps x and y alone.

Left to itself, the product keeps act(x), and the activation what its own gradient needs: as much again, for
numbers that are quicker to make than to read back. The gradient writes the activation with other functions
than the result does, since XLA would find equal expressions and keep what they give.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .contract import Lazy

_SLOPE = math.sqrt(2 / math.pi)


def _gelu_tanh(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    s = lax.logistic(2 * _SLOPE * (x + 0.044715 * x**3))
    return x * s, s + x * s * (1 - s) * (2 * _SLOPE * (1 + 3 * 0.044715 * x**2))


def _gelu(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    phi = 0.5 * lax.erfc(-x * math.sqrt(0.5))
    return x * phi, phi + x * jnp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))


def _silu(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    s = 0.5 * (1 + jnp.tanh(0.5 * x))
    return x * s, s + x * s * (1 - s)


ACTIVATIONS: dict[str, tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], Any]]] = {
    "gelu_tanh": (functools.partial(jax.nn.gelu, approximate=True), _gelu_tanh),
    "gelu": (functools.partial(jax.nn.gelu, approximate=False), _gelu),
    "silu": (jax.nn.silu, _silu),
}
"""The activation, and (activation, slope) in other words."""


@dataclass(frozen=True)
class Gate(Lazy):
    """An activation that has not been applied yet: a product with it takes both at once."""

    name: str
    x: jax.Array

    def array(self) -> jax.Array:
        return activate(self.name, self.x)

    def astype(self, dtype: Any) -> Gate:
        return Gate(self.name, self.x.astype(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def activate(name: str, x: jax.Array) -> jax.Array:
    """act(x)."""
    return ACTIVATIONS[name][0](x)


activate.defvjp(
    lambda name, x: (activate(name, x), x),
    lambda name, x, dy: (dy * ACTIVATIONS[name][1](x)[1],),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gated(name: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """act(x) * y."""
    return ACTIVATIONS[name][0](x) * y


def _gated_backward(name: str, kept: tuple[jax.Array, jax.Array], dz: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, y = kept
    value, slope = ACTIVATIONS[name][1](x)
    return dz * y * slope, dz * value


gated.defvjp(lambda name, x, y: (gated(name, x, y), (x, y)), _gated_backward)
