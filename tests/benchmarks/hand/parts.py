"""What every model written by hand is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Draws:
    """Random matrices [in, out], scaled by the root of `in`."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __call__(self, *shape: int, scale: float | None = None) -> np.ndarray:
        drawn = self.rng.standard_normal(shape, dtype=np.float32)
        return drawn * (shape[0] ** -0.5 if scale is None else scale)


def rms(x: jax.Array, g: jax.Array) -> jax.Array:
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * (1 + g)


def angles(at: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) [time, 1, width / 2] for positions [time]."""
    angle = at[:, None] * 10000.0 ** (-jnp.arange(width // 2) / (width // 2))
    return jnp.cos(angle)[:, None, :], jnp.sin(angle)[:, None, :]


def rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, cap: Callable[[jax.Array], jax.Array]) -> Any:
    """[batch, time, heads * width] for q [batch, time, heads, width], scaled, and k, v [batch, keys, kv, width]; `cap`
    bends the scores."""
    b, t, _, width = q.shape
    z = jnp.einsum("btkgd,bskd->bkgts", q.reshape(b, t, k.shape[2], -1, width), k)
    z = jax.nn.softmax(jnp.where(mask, cap(z), -1e30), -1)
    return jnp.einsum("bkgts,bskd->btkgd", z, v).reshape(b, t, -1)


def softcap(x: jax.Array, cap: float) -> jax.Array:
    return cap * jnp.tanh(x / cap)


def cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    """The mean for logits [batch, time, vocab] and what comes next, [batch, time]."""
    return jnp.mean(jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, y[..., None], -1)[..., 0])


def adamw(params: Any, grads: Any, m: Any, v: Any, step: jax.Array) -> Any:
    """AdamW (arXiv:1711.05101), the way it is written out by hand. Returns (params, m, v, step)."""
    b1, b2, rate, decay = 0.9, 0.999, 1e-4, 0.01
    step = step + 1
    m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, m, grads)
    v = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, v, grads)
    c1, c2 = 1 - b1**step, 1 - b2**step
    params = jax.tree.map(lambda p, m, v: p - rate * ((m / c1) / (jnp.sqrt(v / c2) + 1e-8) + decay * p), params, m, v)
    return params, m, v, step
