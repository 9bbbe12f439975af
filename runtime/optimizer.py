"""Optimizer recipes of a training program as optax transformations over stored parameters.

A stored array may hold a stack of layers (`lm.layer[0:4:2].w`) of which a selector means only some, so what
is trained and what decays is a mask per array: all, nothing, or an array of booleans over its leading dims.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from planform.backends.xla import Stored
from planform.compiler.ir import Parameter
from planform.compiler.program import selects
from planform.compiler.recipes import Recipe

Mask = bool | np.ndarray
"""True, False, or booleans that broadcast against the array: [stacks.., 1, ..]."""

Schedule = Callable[[Any], Any]
"""The rate of update number n, from 1."""


def schedule(rate: float | Recipe, steps: int) -> Schedule:
    """The learning rate of update n = 1, 2 .. `steps` (`compiler.recipes.SCHEDULES` says which there are)."""
    if not isinstance(rate, Recipe):
        return lambda n: jnp.full(jnp.shape(n), rate, jnp.result_type(float))
    a = rate.arguments
    if rate.name == "constant":
        return schedule(a["value"], steps)
    peak, warmup, end = a["peak"], a["warmup"], a["end"] * a["peak"]
    last, top = a["steps"] or steps, warmup + a["hold"]
    if rate.name == "warmup_cosine":
        shape = lambda x: end + (peak - end) * 0.5 * (1 + jnp.cos(math.pi * x))  # noqa: E731
    elif rate.name == "warmup_linear":
        shape = lambda x: peak + (end - peak) * x  # noqa: E731
    else:
        raise ValueError(f"no schedule `{rate.name}`")

    def at(n: Any) -> Any:
        n = jnp.asarray(n, jnp.result_type(float))
        down = shape(jnp.clip((n - top) / max(last - top, 1), 0, 1))
        return jnp.where(n < warmup, peak * n / max(warmup, 1), down)

    return at


def mask(selectors: Sequence[str], stored: Stored) -> Mask:
    """Which layers of a stored array the selectors mean; none at all mean everything."""
    if not selectors:
        return True
    own = stored.type.with_dims(stored.type.dims[stored.stacked :])
    found = [any(selects(s, Parameter(n, own, path=n)) for s in selectors) for n in stored.logical]
    if len(set(found)) == 1:
        return found[0]
    shape = stored.type.shape({})
    return np.reshape(found, (*shape[: stored.stacked], *(1 for _ in shape[stored.stacked :])))


def both(a: Mask, b: Mask) -> Mask:
    """The layers in both masks."""
    if isinstance(a, bool):
        return b if a else False
    return a if b is True else (False if b is False else a & b)


def optimizer(
    recipe: Recipe, storage: Mapping[str, Stored], trained: Mapping[str, Mask], steps: int
) -> optax.GradientTransformation:
    """The transformation that turns gradients of the `trained` arrays into their changes.

    steps  updates in the whole run, for schedules that don't say

    Its state is a mapping of stages to states, shaped like the parameters where they hold anything per weight.
    """
    a = recipe.arguments
    stages: list[tuple[str, optax.GradientTransformation]] = []
    if a["clip"] is not None:
        stages.append(("clip", optax.clip_by_global_norm(a["clip"])))
    if recipe.name == "sgd":
        if a["momentum"]:
            stages.append(("momentum", optax.trace(a["momentum"], a["nesterov"])))
    elif recipe.name in ("adam", "adamw"):
        stages.append(("adam", optax.scale_by_adam(a["b1"], a["b2"], a["eps"])))
    else:
        raise ValueError(f"no optimizer `{recipe.name}`")
    if a.get("weight_decay"):
        decayed = {n: both(m, mask((a["decay"],), storage[n])) for n, m in trained.items()}
        # A penalty is a part of the loss; decoupled, the decay stands behind all that is done with gradients.
        place = len(stages) if recipe.name == "adamw" else int(a["clip"] is not None)
        stages.insert(place, ("decay", _decay(a["weight_decay"], decayed)))
    rate = schedule(a["learning_rate"], steps)
    # optax counts the updates done before this one.
    stages.append(("rate", optax.scale_by_learning_rate(lambda count: rate(count + 1))))
    return optax.named_chain(*stages)


def keep(values: Mapping[str, jax.Array], masks: Mapping[str, Mask]) -> dict[str, jax.Array]:
    """The values, zero outside their masks."""
    return {n: v if masks[n] is True else jnp.where(masks[n], v, 0) for n, v in values.items()}


def _decay(weight: float, masks: Mapping[str, Mask]) -> optax.GradientTransformation:
    """The masked weights times `weight` added to their changes: decoupled weight decay (arXiv:1711.05101) behind
    Adam, an L2 penalty before momentum."""

    def update(changes: Any, state: optax.OptState, params: Any = None) -> Any:
        added = keep({n: weight * params[n] for n, m in masks.items() if m is not False}, masks)
        return {n: c + added[n] if n in added else c for n, c in changes.items()}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
