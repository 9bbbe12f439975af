"""Inference written by hand: one compiled prompt for each length, one compiled step with the caches donated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ..checkpoint import tensors
from ..sizes import Size
from .parts import rms, softcap

Keep = Callable[[jax.Array, jax.Array], Any]
"""(new keys, new values) -> ((keys, values) to attend to, the cache)."""


def nothing(k: jax.Array, v: jax.Array) -> Any:
    return (k, v), None


def last(slots: int, k: jax.Array, v: jax.Array) -> Any:
    """All of a prompt to attend to; its last entries, at slot = position modulo slots, to keep."""
    t = k.shape[1]
    kept = [jnp.roll(a[:, -slots:], t % slots if t >= slots else 0, 1) for a in (k, v)]
    return (k, v), [jnp.pad(a, ((0, 0), (0, slots - a.shape[1]), (0, 0), (0, 0))) for a in kept]


def ring(cache: Any, at: jax.Array, k: jax.Array, v: jax.Array) -> Any:
    """One new entry, written over the oldest."""
    both = [jax.lax.dynamic_update_slice_in_dim(old, new, at % old.shape[1], 1) for old, new in zip(cache, (k, v))]
    return both, both


def visible(time: int, back: int) -> jax.Array:
    """bool[time, time]: which keys an entry sees, itself and so many before it."""
    i, j = jnp.arange(time)[:, None], jnp.arange(time)[None]
    return (j <= i) & (j >= i - back)


class Stream(ABC):
    """One stream. Parameters [in, out] as JAX multiplies them, from a checkpoint folder in float32."""

    names: ClassVar[dict[str, str]]
    """Of what layers have in the checkpoint; not every layer has all of it."""
    norm: ClassVar[str] = "norm"

    def __init__(self, size: Size, folder: Path) -> None:
        self.size = size
        found = dict(tensors(folder))
        self.params = {
            "table": jnp.asarray(found["model.embed_tokens.weight"]),
            "norm": jnp.asarray(found[f"model.{self.norm}.weight"]),
            "layers": [self.layer(found, f"model.layers.{i}.") for i in range(size.layers)],
        }
        self._prompts: dict[tuple[int, int], Any] = {}
        self._step = jax.jit(self.step, donate_argnums=3)

    def layer(self, found: dict[str, np.ndarray], prefix: str) -> dict[str, jax.Array]:
        here = {k: (name, found[prefix + name]) for k, name in self.names.items() if prefix + name in found}
        turned = {k: a.T if name.endswith(".weight") and a.ndim == 2 else a for k, (name, a) in here.items()}
        return {k: jnp.asarray(a) for k, a in turned.items()}

    @abstractmethod
    def prompt(self, params: Any, tokens: jax.Array) -> Any:
        """(the logits [vocab] after the last of tokens [1, time], caches)."""

    @abstractmethod
    def step(self, params: Any, token: jax.Array, at: jax.Array, caches: Any) -> Any:
        """The same after one more token, at position `at`."""

    def head(self, params: Any, x: jax.Array) -> jax.Array:
        return softcap(jnp.einsum("d,vd->v", rms(x[0, -1], params["norm"]), params["table"]), 30.0)

    def start(self, room: int) -> None:
        self.room, self.length, self.caches = room, 0, None

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        if self.caches is None:
            key = len(tokens), self.room
            if key not in self._prompts:
                self._prompts[key] = jax.jit(self.prompt)
            logits, self.caches = self._prompts[key](self.params, jnp.asarray(tokens[None]))
            self.length = len(tokens)
            return np.asarray(logits)
        for token in tokens:
            logits, self.caches = self._step(self.params, jnp.int32(token), jnp.int32(self.length), self.caches)
            self.length += 1
        return np.asarray(logits)
