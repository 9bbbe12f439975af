"""Gemma 2's training step written by hand in JAX, the way an expert does without a compiler: our peer.

Per-layer parameters, layers unrolled (or scanned in pairs), full logits, AdamW in the step, state donated.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .sizes import Size


def init(s: Size, scan: bool = False) -> Any:
    rng = np.random.default_rng(0)

    def w(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32) * shape[0] ** -0.5

    def layer() -> dict[str, np.ndarray]:
        norms = {f"n{i}": np.zeros(s.d, np.float32) for i in (1, 2, 3, 4)}
        q, kv = s.heads * s.head_dim, s.kv * s.head_dim
        return dict(**norms, q=w(s.d, q), k=w(s.d, kv), v=w(s.d, kv), o=w(q, s.d),
                    gate=w(s.d, s.ff), up=w(s.d, s.ff), down=w(s.ff, s.d))  # fmt: skip

    layers: Any = [layer() for _ in range(s.layers)]
    if scan:
        layers = [jax.tree.map(lambda *xs: np.stack(xs), *layers[j::2]) for j in (0, 1)]
    table = 0.02 * rng.standard_normal((s.vocab, s.d), dtype=np.float32)
    return {"table": table, "norm": np.zeros(s.d, np.float32), "layers": layers}


def rms(x: jax.Array, g: jax.Array) -> jax.Array:
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * (1 + g)


def rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def layer(s: Size, p: Any, x: jax.Array, angles: Any, mask: jax.Array) -> jax.Array:
    b, t, _ = x.shape
    h = rms(x, p["n1"])
    q = rope((h @ p["q"]).reshape(b, t, s.heads, s.head_dim), *angles) * s.head_dim**-0.5
    k = rope((h @ p["k"]).reshape(b, t, s.kv, s.head_dim), *angles)
    v = (h @ p["v"]).reshape(b, t, s.kv, s.head_dim)
    z = jnp.einsum("btkgd,bskd->bkgts", q.reshape(b, t, s.kv, -1, s.head_dim), k)
    z = jax.nn.softmax(jnp.where(mask, 50.0 * jnp.tanh(z / 50.0), -1e30), -1)
    o = jnp.einsum("bkgts,bskd->btkgd", z, v).reshape(b, t, -1)
    x = x + rms(o @ p["o"], p["n2"])
    h = rms(x, p["n3"])
    h = (jax.nn.gelu(h @ p["gate"], approximate=True) * (h @ p["up"])) @ p["down"]
    return x + rms(h, p["n4"])


def loss(s: Size, params: Any, tokens: jax.Array, scan: bool = False) -> jax.Array:
    """Mean next-token cross-entropy of tokens [batch, time + 1]."""
    x, y = tokens[:, :-1], tokens[:, 1:]
    t = x.shape[1]
    i, j = jnp.arange(t)[:, None], jnp.arange(t)[None]
    angle = jnp.arange(t)[:, None] * 10000.0 ** (-jnp.arange(s.head_dim // 2) / (s.head_dim // 2))
    angles = (jnp.cos(angle)[:, None, :], jnp.sin(angle)[:, None, :])
    masks = [(j <= i) & (j > i - s.window), j <= i]
    h = params["table"][x] * math.sqrt(s.d)
    if scan:

        def pair(h: jax.Array, ps: Any) -> tuple[jax.Array, None]:
            for p, m in zip(ps, masks):
                h = layer(s, p, h, angles, m)
            return h, None

        h, _ = lax.scan(pair, h, params["layers"])
    else:
        for n, p in enumerate(params["layers"]):
            h = layer(s, p, h, angles, masks[n % 2])
    logits = jnp.einsum("btd,vd->btv", rms(h, params["norm"]), params["table"])
    logits = 30.0 * jnp.tanh(logits / 30.0)
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
