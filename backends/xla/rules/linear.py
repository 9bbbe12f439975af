"""Products: one `dot_general` each, whose dims come out in the order the op wants."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from planform.compiler.ops import linear as ops

from .contract import Call, rule


@rule(ops.Linear)
def linear(call: Call, x: jax.Array, weight: jax.Array, *bias: jax.Array) -> jax.Array:
    axes = call.op._over(call.inputs[0])
    y = lax.dot_general(x, weight, ((axes, tuple(range(len(axes)))), ((), ())))
    return y + bias[0] if bias else y


@rule(ops.Embed, floats="own")
def embed(call: Call, x: jax.Array, table: jax.Array) -> jax.Array:
    return jnp.take(table, x, axis=0, mode="clip")  # rows first: casting the table would touch all of it


@rule(ops.Contract)
def contract(call: Call, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(call.op.equation(*call.inputs), x, y)


@rule(ops.Unembed)
def unembed(call: Call, x: jax.Array, table: jax.Array) -> jax.Array:
    return lax.dot_general(x, table, (((x.ndim - 1,), (1,)), ((), ())))
