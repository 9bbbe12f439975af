"""Ops that know the sequence axis."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from planform.compiler.ops import sequence as ops

from .contract import Call, Default, rule


@rule(ops.Next, lazy=Default)
def next_(call: Call, x: jax.Array, document: jax.Array | Default) -> jax.Array:
    x = x.array() if isinstance(x, Default) else x
    shifted = x[:, 1:]
    if not isinstance(document, Default):
        shifted = jnp.where(document[:, 1:] == document[:, :-1], shifted, -1)
    return jnp.pad(shifted, ((0, 0), (0, 1)), constant_values=-1)


@rule(ops.Advance)
def advance(call: Call, length: jax.Array) -> jax.Array:
    time = call.outputs[0].shape({})[-1]
    return length[:, None] + jnp.arange(time, dtype=jnp.int32)


@rule(ops.Last, lazy=Default)
def last(call: Call, x: jax.Array, count: jax.Array | Default) -> jax.Array:
    if isinstance(count, Default) and count.kind == "full":
        return x[:, count.fill - 1 : count.fill]
    count = count.array() if isinstance(count, Default) else count
    at = (count - 1).reshape(-1, *[1] * (x.ndim - 1))
    return jnp.take_along_axis(x, at, axis=1)


@rule(ops.Iota)
def iota(call: Call) -> Default:
    return Default("iota", call.outputs[0])
