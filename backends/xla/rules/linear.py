"""Products: one `dot_general` each, whose dims come out in the order the op wants."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import lax

from planform.compiler.ops import linear as ops
from planform.compiler.ops.einsum import Einsum

from .contract import Call, rule


@rule(ops.Linear)
def linear(call: Call, x: jax.Array, weight: jax.Array, *bias: jax.Array) -> jax.Array:
    axes = call.op._over(call.inputs[0])
    if axes != tuple(range(x.ndim - len(axes), x.ndim)):
        x = jnp.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim))
    rows, out = x.shape[: x.ndim - len(axes)], weight.shape[len(axes) :]
    # One matrix for all products of an x: what the gradients keep of it is then one array too. But where devices share
    # a row's entries, one dim of rows would take them to each other.
    split = any(call.split(call.inputs[0])[1 : x.ndim - len(axes)])
    key = ("rows", id(x), len(axes))
    _, flat = call.shared.setdefault(key, (x, x.reshape(*(rows if split else (math.prod(rows),)), -1)))
    y = matmul(flat, weight).reshape(*rows, *out)
    return y + bias[0] if bias else y


@jax.custom_vjp
def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """x [.., k] w [k, n] -> [.., n], with a gradient that never transposes a wide matrix.

    w may have its k and n split into several dims. Left to itself, XLA sums w's gradient over [batch, time]
    of a transposed copy, and fuses into the copy what leads up to it: computed a second time, with strided
    reads. The products that the gradient is made of have gradients of the same kind.
    """
    return lax.dot_general(x, w.reshape(x.shape[-1], -1), (((x.ndim - 1,), (0,)), ((), ())))


@jax.custom_vjp
def transposed(y: jax.Array, w: jax.Array) -> jax.Array:
    """y [.., n] w^T [n, k] -> [.., k], for w [k, n]."""
    return lax.dot_general(y, w, (((y.ndim - 1,), (1,)), ((), ())))


@jax.custom_vjp
def outer(x: jax.Array, y: jax.Array) -> jax.Array:
    """x^T y for x [.., k] and y [.., n] -> [k, n].

    On CPUs where `copying` pays, of a transposed copy: of a narrow x, as a wide one would cost more than it gains, and
    so would a very narrow one, whose product is soon done.
    """

    def copied(x: jax.Array, y: jax.Array) -> jax.Array:
        return lax.dot(lax.optimization_barrier(x.T), y)  # else XLA folds the two together again

    if x.ndim == 2 and 128 < x.shape[1] <= y.shape[1] and copying():
        made: jax.Array = lax.platform_dependent(x, y, cpu=copied, default=over_rows)
        return made
    return over_rows(x, y)


def over_rows(x: jax.Array, y: jax.Array) -> jax.Array:
    """`outer` as one `dot_general`, wherever it runs."""
    rows = tuple(range(x.ndim - 1))
    return lax.dot_general(x, y, ((rows, rows), ((), ())))


@functools.cache
def copying() -> bool:
    """Whether this machine's CPU is one of AMD's. XLA gives products of transposed matrices to Eigen and others to
    YNNPACK, which is faster there, the copy included: of 1,024 rows, 512 by 2,048, 474 GFLOP/s in place of 407 on two
    cores of Zen 5, and a training step of 40M parameters takes 3.5% less. On a Xeon it took more."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


Two = tuple[jax.Array, jax.Array]


def _matmul_backward(kept: Two, dy: jax.Array) -> Two:
    x, w = kept
    return transposed(dy, w.reshape(x.shape[-1], -1)), outer(x, dy).reshape(w.shape)


def _transposed_backward(kept: Two, dx: jax.Array) -> Two:
    y, w = kept
    return matmul(dx, w), outer(dx, y)


def _outer_backward(kept: Two, dw: jax.Array) -> Two:
    x, y = kept
    return transposed(y, dw), matmul(x, dw)


matmul.defvjp(lambda x, w: (matmul(x, w), (x, w)), _matmul_backward)
transposed.defvjp(lambda y, w: (transposed(y, w), (y, w)), _transposed_backward)
outer.defvjp(lambda x, y: (outer(x, y), (x, y)), _outer_backward)


@rule(Einsum)
def einsum(call: Call, x: jax.Array, y: jax.Array) -> jax.Array:
    left, right, result = call.op.terms()
    if any(c in right and c in result for c in left):
        return jnp.einsum(call.op.equation, x, y)
    # Without letters that all three have it is one product of matrices.
    sizes = dict(zip(left + right, (*x.shape, *y.shape)))
    summed = [c for c in left if c in right]
    rows, columns = [c for c in result if c in left], [c for c in result if c in right]

    def matrix(a: jax.Array, letters: str, first: list[str], second: list[str]) -> jax.Array:
        a = a.transpose([letters.index(c) for c in (*first, *second)])
        return a.reshape(math.prod(sizes[c] for c in first), -1)

    if left.startswith("".join(summed)) and right.startswith("".join(summed)):
        z = outer(matrix(x, left, summed, rows), matrix(y, right, summed, columns))
    elif right.endswith("".join(summed)):
        z = transposed(matrix(x, left, rows, summed), matrix(y, right, columns, summed))
    else:
        z = matmul(matrix(x, left, rows, summed), matrix(y, right, summed, columns))
    z = z.reshape([sizes[c] for c in (*rows, *columns)])
    return z.transpose([[*rows, *columns].index(c) for c in result])


@rule(ops.Embed, floats="own")
def embed(call: Call, x: jax.Array, table: jax.Array) -> jax.Array:
    return jnp.take(table, x, axis=0, mode="clip")  # rows first: casting the table would touch all of it


@rule(ops.Contract)
def contract(call: Call, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(call.op.equation(*call.inputs), x, y)


@rule(ops.Unembed)
def unembed(call: Call, x: jax.Array, table: jax.Array) -> jax.Array:
    return lax.dot_general(x, table, (((x.ndim - 1,), (1,)), ((), ())))
