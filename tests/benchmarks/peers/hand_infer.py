"""Gemma 2's inference written by hand in JAX, the way an expert does without a compiler: our peer.

Per-layer parameters, layers unrolled, caches of the window's size as rings, donated between steps.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tests.benchmarks.hand_jax import rms, rope

_NAMES = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
          "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj", "n1": "input_layernorm",
          "n2": "post_attention_layernorm", "n3": "pre_feedforward_layernorm",
          "n4": "post_feedforward_layernorm"}  # fmt: skip


class Decoder:
    """One stream. Parameters [in, out] as JAX multiplies them, from a checkpoint folder in float32."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        c = self.config = json.loads((folder / "config.json").read_text())
        found: dict[str, np.ndarray] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it isn't a mapping
                    found[name] = tensors.get_tensor(name)

        def laid_out(name: str) -> jax.Array:
            array = found.pop(name + ".weight").astype(np.float32)
            return jnp.asarray(array.T if array.ndim == 2 else array)

        self.params: Any = {
            "table": jnp.asarray(found.pop("model.embed_tokens.weight").astype(np.float32)),
            "norm": laid_out("model.norm"),
            "layers": [
                {k: laid_out(f"model.layers.{i}.{name}") for k, name in _NAMES.items()}
                for i in range(c["num_hidden_layers"])
            ],
        }
        self.local = [kind == "sliding_attention" for kind in c["layer_types"]]
        self._prefills: dict[tuple[int, int], Any] = {}
        self._step = jax.jit(self._decode, donate_argnums=3)

    def start(self, room: int) -> None:
        self.room, self.length, self.caches = room, 0, None

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        if self.caches is None:
            key = len(tokens), self.room
            if key not in self._prefills:
                self._prefills[key] = jax.jit(self._prompt)
            logits, self.caches = self._prefills[key](self.params, jnp.asarray(tokens[None]))
            self.length = len(tokens)
            return np.asarray(logits)
        for token in tokens:
            logits, self.caches = self._step(self.params, jnp.int32(token), jnp.int32(self.length), self.caches)
            self.length += 1
        return np.asarray(logits)

    def _layer(self, p: Any, x: jax.Array, at: jax.Array, caches: Any, mask: jax.Array, keep: Any) -> Any:
        """x [1, time, d] at positions [time]; `keep(new, caches)` gives the keys and values to attend to."""
        c = self.config
        heads, kv, width = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        t = x.shape[1]
        angle = at[:, None] * 10000.0 ** (-jnp.arange(width // 2) / (width // 2))
        angles = (jnp.cos(angle)[:, None, :], jnp.sin(angle)[:, None, :])
        h = rms(x, p["n1"])
        q = rope((h @ p["q"]).reshape(1, t, heads, width), *angles) * c["query_pre_attn_scalar"] ** -0.5
        k = rope((h @ p["k"]).reshape(1, t, kv, width), *angles)
        v = (h @ p["v"]).reshape(1, t, kv, width)
        (ks, vs), caches = keep((k, v), caches)
        z = jnp.einsum("btkgd,bskd->bkgts", q.reshape(1, t, kv, -1, width), ks)
        z = jax.nn.softmax(jnp.where(mask, 50.0 * jnp.tanh(z / 50.0), -1e30), -1)
        o = jnp.einsum("bkgts,bskd->btkgd", z, vs).reshape(1, t, -1)
        x = x + rms(o @ p["o"], p["n2"])
        h = rms(x, p["n3"])
        h = (jax.nn.gelu(h @ p["gate"], approximate=True) * (h @ p["up"])) @ p["down"]
        return x + rms(h, p["n4"]), caches

    def _head(self, params: Any, x: jax.Array) -> jax.Array:
        logits = jnp.einsum("d,vd->v", rms(x[0, -1], params["norm"]), params["table"])
        return 30.0 * jnp.tanh(logits / 30.0)

    def _prompt(self, params: Any, tokens: jax.Array) -> Any:
        t, window = tokens.shape[1], self.config["sliding_window"]
        i, j = jnp.arange(t)[:, None], jnp.arange(t)[None]
        x = params["table"][tokens] * math.sqrt(self.config["hidden_size"])
        caches = []
        for p, local in zip(params["layers"], self.local):
            slots = min(window, self.room) if local else self.room

            def keep(new: Any, _: Any, slots: int = slots) -> Any:
                """All of the prompt to attend to; its last entries at slot = position modulo slots to keep."""
                kept = [jnp.roll(a[:, -slots:], t % slots if t >= slots else 0, 1) for a in new]
                return new, [jnp.pad(a, ((0, 0), (0, slots - a.shape[1]), (0, 0), (0, 0))) for a in kept]

            mask = (j <= i) & (j > i - window) if local else j <= i
            x, cache = self._layer(p, x, jnp.arange(t), None, mask, keep)
            caches.append(cache)
        return self._head(params, x), caches

    def _decode(self, params: Any, token: jax.Array, at: jax.Array, caches: Any) -> Any:
        x = params["table"][token[None, None]] * math.sqrt(self.config["hidden_size"])

        def keep(new: Any, old: Any) -> Any:
            slots = old[0].shape[1]
            both = [jax.lax.dynamic_update_slice_in_dim(o, n, at % slots, 1) for o, n in zip(old, new)]
            return both, both

        kept = []
        for p, cache in zip(params["layers"], caches):
            mask = jnp.arange(cache[0].shape[1]) <= at
            x, cache = self._layer(p, x, at[None], cache, mask, keep)
            kept.append(cache)
        return self._head(params, x), kept
