"""Stored arrays under another grouping of layers."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from planform.backends.xla import Stored

Arrays = dict[str, jax.Array]


def view(parameters: Arrays, stored: Mapping[str, Stored], want: Mapping[str, Stored]) -> Arrays:
    """The parameters as a graph wants them that groups its layers in another way than they are stored."""
    at = {logical: (name, i) for name, s in stored.items() for i, logical in enumerate(s.logical)}

    def layer(logical: str) -> jax.Array:
        name, i = at[logical]
        array = parameters[name]
        own = array.shape[stored[name].stacked :]
        return array.reshape(-1, *own)[i]

    def array(name: str, s: Stored) -> jax.Array:
        if name in parameters:
            return parameters[name]
        return jnp.stack([layer(n) for n in s.logical]).reshape(s.type.shape({}))

    return {name: array(name, s) for name, s in want.items()}
