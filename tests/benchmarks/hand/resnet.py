"""ResNet-50 (v1.5) as flax's users write it: linen's Conv and BatchNorm, nothing fused by hand. And how its weights
become flax's and transformers'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from planform.compiler.weights import WeightsMap, weights_map
from planform.spec import load


class Unit(nn.Module):
    width: int
    size: int
    stride: int = 1
    training: bool = True
    zero: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(
            self.width, (self.size, self.size), (self.stride, self.stride), padding=self.size // 2, use_bias=False,
            name="conv2d",
        )(x)  # fmt: skip
        start = nn.initializers.zeros if self.zero else nn.initializers.ones
        return nn.BatchNorm(not self.training, momentum=0.9, scale_init=start, name="batch_norm")(x)


class Layer(nn.Module):
    width: int
    stride: int = 1
    project: bool = False
    training: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        t = self.training
        y = nn.relu(Unit(self.width // 4, 1, training=t, name="a")(x))
        y = nn.relu(Unit(self.width // 4, 3, self.stride, training=t, name="b")(y))
        y = Unit(self.width, 1, training=t, zero=True, name="c")(y)
        return nn.relu(y + (Unit(self.width, 1, self.stride, training=t, name="shortcut")(x) if self.project else x))


class ResNet(nn.Module):
    layers: tuple[int, ...] = (3, 4, 6, 3)
    base: int = 64
    classes: int = 1000
    training: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(Unit(self.base, 7, 2, training=self.training, name="stem")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for i, n in enumerate(self.layers):
            for j in range(n):
                stride = 2 if i and not j else 1
                x = Layer(4 * self.base * 2**i, stride, not j, self.training, name=f"stage{i + 1}_{j}")(x)
        return nn.Dense(self.classes, name="out")(jnp.mean(x, (1, 2)))


def variables(parameters: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Parameters and statistics of `resnet50` by logical name as this module's."""
    found: dict[str, Any] = {"params": {}, "batch_stats": {}}
    names = {"weight": "kernel", "variance": "var"}
    for path, array in parameters.items():
        _, *place, last = path.split(".")
        place = [p for p in place if p not in ("unit", "branch")]
        if place[0].startswith("stage"):
            stage, layer, *rest = place
            place = [f"{stage}_{0 if layer == 'first' else int(layer[6:-1]) + 1}", *rest]
        at = found["batch_stats" if last in ("mean", "variance") else "params"]
        for key in place:
            at = at.setdefault(key, {})
        at[names.get(last, last)] = jnp.asarray(array)
    return found


def to_torch(model: Any, parameters: Mapping[str, np.ndarray]) -> WeightsMap:
    """Fills transformers' model with parameters and statistics of `resnet50` by logical name. Returns the map."""
    import torch

    weights, state = weights_map(load("resnet50"), "huggingface"), model.state_dict()
    for t in weights.tensors:
        state[t.name].copy_(torch.from_numpy(np.array(t.to_theirs(parameters.__getitem__))))
    return weights
