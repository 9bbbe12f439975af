"""RecurrentGemma by hand: per-layer parameters, layers unrolled, full logits; windows as bands, caches as rings.

FORMS are those of the recurrence: a tree over the entries, steps within all chunks at once and then from chunk to
chunk, or one entry after the other. Here a training step takes the same time with each, within the noise, and with
a gradient written by hand too; the last compiles soonest.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax

from ..sizes import Size
from . import streams
from .parts import Draws, angles, attend, cross_entropy, rms, rope, softcap

FORMS = ("", "associative", "chunked", "sequential")
TAPS, CHUNK = 4, 16


def recurs(n: int) -> bool:
    """Two recurrences, then an attention, and so on."""
    return n % 3 != 2


def init(s: Size, form: str = "") -> Any:
    w = Draws()

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.float32)

    def layer(n: int) -> dict[str, np.ndarray]:
        part, q = s.d // s.heads, s.heads * s.head_dim
        common = {"n1": zeros(s.d), "n2": zeros(s.d), "gate": w(s.d, s.ff), "gate_b": zeros(s.ff), "up": w(s.d, s.ff),
                  "up_b": zeros(s.ff), "down": w(s.ff, s.d), "down_b": zeros(s.d)}  # fmt: skip
        if not recurs(n):
            keys = {k: w(s.d, s.head_dim) for k in "kv"}
            return {**common, **keys, "q": w(s.d, q), "o": w(q, s.d), "o_b": zeros(s.d)}
        gates = {k: w(s.heads, part, part, scale=part**-0.5) for k in "ir"}
        biases = {f"{k}_b": zeros(s.heads, part) for k in "ir"}
        return {**common, **gates, **biases, "y": w(s.d, s.d), "y_b": zeros(s.d), "x": w(s.d, s.d), "x_b": zeros(s.d),
                "out": w(s.d, s.d), "out_b": zeros(s.d), "conv": w(TAPS, s.d), "conv_b": zeros(s.d),
                "rate": w.rng.uniform(-6.9, -2.2, s.d).astype(np.float32)}  # fmt: skip

    layers = [layer(n) for n in range(s.layers)]
    return {"table": w(s.vocab, s.d, scale=0.02), "norm": zeros(s.d), "layers": layers}


def embed(s: Size, table: jax.Array, tokens: jax.Array) -> jax.Array:
    return table[tokens] * float(np.sqrt(s.d).astype(ml_dtypes.bfloat16))


# -- h_t = a_t h_(t-1) + b_t, all [batch, time, d], from zero -----------------------------------------------------


def associative(a: jax.Array, b: jax.Array) -> jax.Array:
    return lax.associative_scan(lambda l, r: (l[0] * r[0], r[0] * l[1] + r[1]), (a, b), axis=1)[1]


def chunked(a: jax.Array, b: jax.Array) -> jax.Array:
    batch, time, d = a.shape
    pad = [(0, 0), (0, -time % CHUNK), (0, 0)]
    a, b = (jnp.pad(x, pad).reshape(batch, -1, CHUNK, d).transpose(2, 0, 1, 3) for x in (a, b))

    def within(carry: Any, ab: Any) -> Any:
        new = carry[0] * ab[0], ab[0] * carry[1] + ab[1]
        return new, new

    zero = jnp.zeros_like(a[0])
    _, (decay, h) = lax.scan(within, (zero + 1, zero), (a, b), unroll=CHUNK)

    def across(h: jax.Array, ab: Any) -> Any:
        return ab[0] * h + ab[1], h

    before = lax.scan(across, zero[:, 0], (decay[-1].swapaxes(0, 1), h[-1].swapaxes(0, 1)))[1]
    h = h + decay * before.swapaxes(0, 1)
    return h.transpose(1, 2, 0, 3).reshape(batch, -1, d)[:, :time]


def sequential(a: jax.Array, b: jax.Array) -> jax.Array:
    def step(h: jax.Array, ab: Any) -> Any:
        h = ab[0] * h + ab[1]
        return h, h

    ab = a.swapaxes(0, 1), b.swapaxes(0, 1)
    return lax.scan(step, jnp.zeros_like(a[:, 0]), ab, unroll=8)[1].swapaxes(0, 1)


SCANS = {"": sequential, "associative": associative, "chunked": chunked, "sequential": sequential}


# -- layers: (x [batch, time, d] after it, what is to be kept) -----------------------------------------------------


def coefficients(s: Size, p: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """a and b of the recurrence, b not yet whole at a stream's first entry."""
    parts = x.reshape(*x.shape[:2], s.heads, -1)
    i, r = (jax.nn.sigmoid(jnp.einsum("bthi,hij->bthj", parts, p[k]) + p[k + "_b"]).reshape(x.shape) for k in "ir")
    log_a = -8.0 * r * jax.nn.softplus(p["rate"])
    return jnp.exp(log_a), x * i


def normal(a: jax.Array, x: jax.Array) -> jax.Array:
    return x * jnp.sqrt(jnp.maximum(1 - a * a, 2.5e-7))  # the root's derivative is at most 1000


def recur(s: Size, p: Any, x: jax.Array, form: str) -> Any:
    h = rms(x, p["n1"])
    y = jax.nn.gelu(h @ p["y"] + p["y_b"], approximate=True)
    padded = jnp.pad(h @ p["x"] + p["x_b"], ((0, 0), (TAPS - 1, 0), (0, 0)))
    u = sum(padded[:, k : k + x.shape[1]] * p["conv"][k] for k in range(TAPS)) + p["conv_b"]
    a, u = coefficients(s, p, u)
    b = normal(a, u).at[:, 0].set(u[:, 0])
    states = SCANS[form](a, b)
    return x + (states * y) @ p["out"] + p["out_b"], (states[:, -1], padded[:, 1 - TAPS :])


def recur_step(s: Size, p: Any, x: jax.Array, cache: Any) -> Any:
    h = rms(x, p["n1"])
    y = jax.nn.gelu(h @ p["y"] + p["y_b"], approximate=True)
    inputs = jnp.concatenate([cache[1], h @ p["x"] + p["x_b"]], 1)
    u = (inputs * p["conv"]).sum(1, keepdims=True) + p["conv_b"]
    a, u = coefficients(s, p, u)
    state = a * cache[0][:, None] + normal(a, u)
    return x + (state * y) @ p["out"] + p["out_b"], (state[:, 0], inputs[:, 1:])


def attention(s: Size, p: Any, x: jax.Array, turn: Any, look: Any, keep: streams.Keep) -> Any:
    """`look(q, k, v)` attends."""
    b, t, _ = x.shape
    h = rms(x, p["n1"])

    def heads(name: str, rotate: bool) -> jax.Array:
        z = (h @ p[name]).reshape(b, t, -1, s.head_dim)
        a, rest = jnp.split(z, 2, -1)
        return jnp.concatenate([rope(a, *turn), rest], -1) if rotate else z

    (k, v), cache = keep(heads("k", True), heads("v", False))
    return x + look(heads("q", True) * s.head_dim**-0.5, k, v) @ p["o"] + p["o_b"], cache


def banded(window: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Blocks of a window's length, each attending to itself and the one before; an entry sees `window` before it."""
    b, t, kv, width = k.shape
    if t <= window:
        return attend(q, k, v, streams.visible(t, window), lambda z: z)
    pad = [(0, 0), (0, -t % window), (0, 0), (0, 0)]
    q, k, v = (jnp.pad(z, pad).reshape(b, -1, window, z.shape[2], width) for z in (q, k, v))
    n = q.shape[1]
    k, v = (jnp.concatenate([jnp.pad(z[:, :-1], [(0, 0), (1, 0), *[(0, 0)] * 3]), z], 2) for z in (k, v))
    i, j = jnp.arange(window)[:, None], jnp.arange(2 * window)[None]
    seen = (j >= i) & (j <= i + window) & ((jnp.arange(n) > 0)[:, None, None] | (j >= window))
    q, k, v = (z.reshape(b * n, -1, z.shape[3], width) for z in (q, k, v))
    mask = jnp.broadcast_to(seen, (b, *seen.shape)).reshape(b * n, 1, 1, window, 2 * window)
    return attend(q, k, v, mask, lambda z: z).reshape(b, n * window, -1)[:, :t]


def feed(p: Any, x: jax.Array) -> jax.Array:
    h = rms(x, p["n2"])
    h = jax.nn.gelu(h @ p["gate"] + p["gate_b"], approximate=True) * (h @ p["up"] + p["up_b"])
    return x + h @ p["down"] + p["down_b"]


def body(s: Size, params: Any, tokens: jax.Array, form: str, keep: streams.Keep) -> Any:
    """(x [batch, time, d] before the last norm, the caches)."""
    x = embed(s, params["table"], tokens)
    turn = angles(jnp.arange(tokens.shape[1]), s.head_dim // 2)
    caches = []
    for n, p in enumerate(params["layers"]):
        if recurs(n):
            x, cache = recur(s, p, x, form)
        else:
            x, cache = attention(s, p, x, turn, partial(banded, s.window), keep)
        x = feed(p, x)
        caches.append(cache)
    return x, caches


def loss(s: Size, params: Any, tokens: jax.Array, form: str = "") -> jax.Array:
    """Mean next-token cross-entropy of tokens [batch, time + 1]."""
    x, _ = body(s, params, tokens[:, :-1], form, streams.nothing)
    logits = jnp.einsum("btd,vd->btv", rms(x, params["norm"]), params["table"])
    return cross_entropy(softcap(logits, 30.0), tokens[:, 1:])


class Stream(streams.Stream):
    norm = "final_norm"
    names = {
        "n1": "temporal_pre_norm.weight", "n2": "channel_pre_norm.weight",
        **{f"{k}{b}": f"mlp_block.{k}_proj.{n}" for k in ("gate", "up", "down")
           for b, n in (("", "weight"), ("_b", "bias"))},
        **{f"{k}{b}": f"temporal_block.linear_{k}.{n}" for k in ("y", "x", "out")
           for b, n in (("", "weight"), ("_b", "bias"))},
        **{k: f"temporal_block.{k}_proj.weight" for k in "qkvo"}, "o_b": "temporal_block.o_proj.bias",
        "conv": "temporal_block.conv_1d.weight", "conv_b": "temporal_block.conv_1d.bias",
        "rate": "temporal_block.rg_lru.recurrent_param",
        "i": "temporal_block.rg_lru.input_gate_weight", "i_b": "temporal_block.rg_lru.input_gate_bias",
        "r": "temporal_block.rg_lru.recurrent_gate_weight", "r_b": "temporal_block.rg_lru.recurrent_gate_bias",
    }  # fmt: skip

    def layer(self, found: dict[str, np.ndarray], prefix: str) -> dict[str, jax.Array]:
        p = super().layer(found, prefix)
        return p | {"conv": p["conv"][:, 0].T} if "conv" in p else p

    def prompt(self, params: Any, tokens: jax.Array) -> Any:
        x, caches = body(self.size, params, tokens, "", partial(streams.last, min(self.size.window + 1, self.room)))
        return self.head(params, x), caches

    def step(self, params: Any, token: jax.Array, at: jax.Array, caches: Any) -> Any:
        s = self.size
        x = embed(s, params["table"], token[None, None])
        turn = angles(at[None], s.head_dim // 2)
        kept = []
        for n, (p, cache) in enumerate(zip(params["layers"], caches)):
            if recurs(n):
                x, cache = recur_step(s, p, x, cache)
            else:
                mask = jnp.arange(cache[0].shape[1]) <= at
                look = partial(attend, mask=mask, cap=lambda z: z)
                x, cache = attention(s, p, x, turn, look, partial(streams.ring, cache, at))
            x = feed(p, x)
            kept.append(cache)
        return self.head(params, x), kept
