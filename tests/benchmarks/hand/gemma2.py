"""Gemma 2 by hand: per-layer parameters, layers unrolled (or scanned in pairs), full logits; caches as rings."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..sizes import Size
from . import streams
from .parts import Draws, angles, attend, cross_entropy, rms, rope, softcap

FORMS = ("", "scan")


def init(s: Size, form: str = "") -> Any:
    w = Draws()

    def layer() -> dict[str, np.ndarray]:
        norms = {f"n{i}": np.zeros(s.d, np.float32) for i in (1, 2, 3, 4)}
        q, kv = s.heads * s.head_dim, s.kv * s.head_dim
        return dict(**norms, q=w(s.d, q), k=w(s.d, kv), v=w(s.d, kv), o=w(q, s.d),
                    gate=w(s.d, s.ff), up=w(s.d, s.ff), down=w(s.ff, s.d))  # fmt: skip

    layers: Any = [layer() for _ in range(s.layers)]
    if form == "scan":
        layers = [jax.tree.map(lambda *xs: np.stack(xs), *layers[j::2]) for j in (0, 1)]
    return {"table": w(s.vocab, s.d, scale=0.02), "norm": np.zeros(s.d, np.float32), "layers": layers}


def layer(s: Size, p: Any, x: jax.Array, turn: Any, mask: jax.Array, keep: streams.Keep = streams.nothing) -> Any:
    """(x [batch, time, d] after a layer, its cache)."""
    b, t, _ = x.shape
    h = rms(x, p["n1"])
    q = rope((h @ p["q"]).reshape(b, t, s.heads, s.head_dim), *turn) * s.head_dim**-0.5
    k = rope((h @ p["k"]).reshape(b, t, s.kv, s.head_dim), *turn)
    v = (h @ p["v"]).reshape(b, t, s.kv, s.head_dim)
    (k, v), cache = keep(k, v)
    o = attend(q, k, v, mask, partial(softcap, cap=50.0))
    x = x + rms(o @ p["o"], p["n2"])
    h = rms(x, p["n3"])
    h = (jax.nn.gelu(h @ p["gate"], approximate=True) * (h @ p["up"])) @ p["down"]
    return x + rms(h, p["n4"]), cache


def loss(s: Size, params: Any, tokens: jax.Array, form: str = "") -> jax.Array:
    """Mean next-token cross-entropy of tokens [batch, time + 1]."""
    x, y = tokens[:, :-1], tokens[:, 1:]
    t = x.shape[1]
    turn = angles(jnp.arange(t), s.head_dim)
    masks = [streams.visible(t, s.window - 1), streams.visible(t, t)]
    h = params["table"][x] * math.sqrt(s.d)
    if form == "scan":

        def pair(h: jax.Array, ps: Any) -> tuple[jax.Array, None]:
            for p, m in zip(ps, masks):
                h, _ = layer(s, p, h, turn, m)
            return h, None

        h, _ = lax.scan(pair, h, params["layers"])
    else:
        for n, p in enumerate(params["layers"]):
            h, _ = layer(s, p, h, turn, masks[n % 2])
    logits = jnp.einsum("btd,vd->btv", rms(h, params["norm"]), params["table"])
    return cross_entropy(softcap(logits, 30.0), y)


class Stream(streams.Stream):
    names = {
        "q": "self_attn.q_proj.weight", "k": "self_attn.k_proj.weight", "v": "self_attn.v_proj.weight",
        "o": "self_attn.o_proj.weight", "gate": "mlp.gate_proj.weight", "up": "mlp.up_proj.weight",
        "down": "mlp.down_proj.weight", "n1": "input_layernorm.weight", "n2": "post_attention_layernorm.weight",
        "n3": "pre_feedforward_layernorm.weight", "n4": "post_feedforward_layernorm.weight",
    }  # fmt: skip

    def prompt(self, params: Any, tokens: jax.Array) -> Any:
        t = tokens.shape[1]
        turn = angles(jnp.arange(t), self.size.head_dim)
        x = params["table"][tokens] * math.sqrt(self.size.d)
        caches = []
        for n, p in enumerate(params["layers"]):
            local = n % 2 == 0
            mask = streams.visible(t, self.size.window - 1 if local else t)
            slots = min(self.size.window, self.room) if local else self.room
            x, cache = layer(self.size, p, x, turn, mask, partial(streams.last, slots))
            caches.append(cache)
        return self.head(params, x), caches

    def step(self, params: Any, token: jax.Array, at: jax.Array, caches: Any) -> Any:
        x = params["table"][token[None, None]] * math.sqrt(self.size.d)
        turn = angles(at[None], self.size.head_dim)
        kept = []
        for p, cache in zip(params["layers"], caches):
            mask = jnp.arange(cache[0].shape[1]) <= at
            x, cache = layer(self.size, p, x, turn, mask, partial(streams.ring, cache, at))
            kept.append(cache)
        return self.head(params, x), kept
