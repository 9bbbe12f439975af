"""Products: one `dot_general` each, whose dims come out in the order the op wants."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from planform.compiler.ops import linear as ops

from .contract import Call, rule


@rule(ops.Linear)
def linear(call: Call, x: jax.Array, weight: jax.Array, *bias: jax.Array) -> jax.Array:
    axes = call.op._over(call.inputs[0])
    if axes != tuple(range(x.ndim - len(axes), x.ndim)):
        x = jnp.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim))
    rows, out = x.shape[: x.ndim - len(axes)], weight.shape[len(axes) :]
    # One matrix for all products of an x: what the gradients keep of it is then one array too.
    key = ("rows", id(x), len(axes))
    _, flat = call.shared.setdefault(key, (x, x.reshape(math.prod(rows), -1)))
    y = matmul(flat, weight).reshape(*rows, *out)
    return y + bias[0] if bias else y


@jax.custom_vjp
def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """x [rows, k] w [k, n] -> [rows, n], with a gradient that never transposes a wide matrix.

    w may have its k and n split into several dims. Left to itself, XLA sums w's gradient over [batch, time]
    of a transposed copy, and fuses into the copy what leads up to it: computed a second time, with strided
    reads.
    """
    return lax.dot(x, w.reshape(x.shape[1], -1))


def _matmul_forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return matmul(x, w), (x, w)


def _matmul_backward(kept: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = kept
    dx = lax.dot_general(dy, w.reshape(x.shape[1], -1), (((1,), (1,)), ((), ())))
    return dx, outer(x, dy).reshape(w.shape)


matmul.defvjp(_matmul_forward, _matmul_backward)


def outer(x: jax.Array, y: jax.Array) -> jax.Array:
    """x^T y for x [rows, k] and y [rows, n] -> [k, n].

    A narrow x is transposed first, which the faster product wants; a wide one would cost more than it gains.
    """
    if x.shape[1] <= y.shape[1]:
        return lax.dot(lax.optimization_barrier(x.T), y)  # else XLA folds the two together again
    return lax.dot_general(x, y, (((0,), (0,)), ((), ())))


@rule(ops.Embed, floats="own")
def embed(call: Call, x: jax.Array, table: jax.Array) -> jax.Array:
    return jnp.take(table, x, axis=0, mode="clip")  # rows first: casting the table would touch all of it


@rule(ops.Contract)
def contract(call: Call, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(call.op.equation(*call.inputs), x, y)


@rule(ops.Unembed)
def unembed(call: Call, x: jax.Array, table: jax.Array) -> jax.Array:
    return lax.dot_general(x, table, (((x.ndim - 1,), (1,)), ((), ())))
