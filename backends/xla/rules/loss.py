"""Losses, in float32 or wider; the loss head in chunks of rows."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from planform.compiler.ops import loss as ops

from ..policy import DTYPES, wide
from .attention import MOST
from .contract import Call, rule


def _mean(loss: jax.Array, targets: jax.Array) -> jax.Array:
    valid = targets >= 0
    return jnp.sum(jnp.where(valid, loss, 0)) / jnp.maximum(jnp.sum(valid), 1)


@rule(ops.CrossEntropy, floats="wide")
def cross_entropy(call: Call, logits: jax.Array, targets: jax.Array) -> jax.Array:
    if call.inputs[1].is_float:
        return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits, -1), -1))
    return _mean(jax.nn.logsumexp(logits, -1) - _picked(logits, targets, "gather"), targets)


@rule(ops.CountTargets)
def count_targets(call: Call, targets: jax.Array) -> jax.Array:
    return jnp.sum(targets >= 0)


@rule(ops.LinearCrossEntropy, floats="own")
def linear_cross_entropy(call: Call, x: jax.Array, table: jax.Array, targets: jax.Array) -> jax.Array:
    compute = DTYPES[call.policy.compute]
    x, targets = apart(call, x, -2), apart(call, targets, -1)
    look = "gather" if call.policy.platform == "cpu" and call.devices(call.inputs[1], 0) == 1 else "compare"
    return head(x.astype(compute), table.astype(compute), targets, call.op.softcap, pieces(call, x, table), look)


def apart(call: Call, a: jax.Array, axis: int) -> jax.Array:
    """[.., time, ..] as [devices, .., time / devices, ..] where devices share time, so that each goes through its own
    rows in chunks; else a chunk would be some devices' rows, which all would have to get."""
    n = call.devices(call.inputs[0], -2)
    return parts(a, n, axis) if n > 1 and a.shape[axis] % n == 0 else a


def pieces(call: Call, x: jax.Array, table: jax.Array, models: int = 1) -> int:
    """How many chunks x's rows, [.., time, d], are taken in: of so many models, the logits of one chunk take at most
    `Policy.chunk` bytes on a device."""
    rows, classes = call.inputs[:2]
    devices = math.prod(call.devices(rows, i) for i in range(rows.rank - 1)) * call.devices(classes, 0)
    size = models * math.prod(x.shape[:-1]) * table.shape[0] * jnp.dtype(DTYPES[call.policy.wide]).itemsize
    return divisor(x.shape[-2], -(-size // (devices * call.policy.chunk)))


def divisor(n: int, least: int) -> int:
    """The smallest divisor of n that is at least `least`."""
    return next(c for c in range(max(min(least, n), 1), n + 1) if n % c == 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def head(
    x: jax.Array, table: jax.Array, targets: jax.Array, softcap: float | None, chunks: int, look: str
) -> jax.Array:
    """cross_entropy(softcap(x table^T), targets), the rows in `chunks` parts along x's last axis but one.

    x [.., time, d], table [vocab, d], targets int[.., time]; `look` is how a target's logit is found: "gather" or
    "compare". Differentiated, it computes the gradients while the chunk's logits exist, so none are kept and none
    are computed twice.
    """

    def one(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        xc, tc = part
        z, _ = _logits(xc, table, softcap)
        nats = jax.nn.logsumexp(z, -1) - _picked(z, tc, look)
        return total + jnp.sum(jnp.where(tc >= 0, nats, 0)), None

    total, _ = lax.scan(one, jnp.zeros((), wide(x)), (parts(x, chunks, -2), parts(targets, chunks, -1)))
    return total / jnp.maximum(jnp.sum(targets >= 0), 1)


def _forward(
    x: jax.Array, table: jax.Array, targets: jax.Array, softcap: float | None, chunks: int, look: str
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    weight = (1 / jnp.maximum(jnp.sum(targets >= 0), 1)).astype(wide(x))

    def one(xc: jax.Array, tc: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(sum of losses, its gradient by x, its gradient by the table [d, vocab]) of one chunk."""
        z, tanh = _logits(xc, table, softcap)
        if softcap is not None and softcap <= MOST:
            e, high = jnp.exp(z), jnp.zeros((), z.dtype)  # within float32's range as it is
        else:
            high = jnp.max(z, -1, keepdims=True)
            e = jnp.exp(z - high)
        mass = jnp.sum(e, -1, keepdims=True)
        hit, valid = _hits(z, tc), tc >= 0
        nats = (jnp.log(mass) + high)[..., 0] - _picked(z, tc, look)
        scale = jnp.where(valid, weight, 0)[..., None]
        dz = e * (scale / mass) - jnp.where(hit, scale, 0)
        if tanh is not None:
            dz = dz * (1 - tanh * tanh)
        dz = dz.astype(x.dtype)
        dx = lax.dot_general(dz, table, (((dz.ndim - 1,), (0,)), ((), ())))
        flat = dz.reshape(-1, dz.shape[-1])
        narrow = lax.optimization_barrier(xc.reshape(flat.shape[0], -1).T)
        # [d, vocab]: of the two factors the narrow one is transposed.
        dtable = lax.dot(narrow, flat, preferred_element_type=wide(x))
        return jnp.sum(jnp.where(valid, nats, 0)), dx, dtable

    def add(carry: tuple[jax.Array, jax.Array], part: tuple[jax.Array, jax.Array]):  # type: ignore[no-untyped-def]
        total, dx, dtable = one(*part)
        return (carry[0] + total, carry[1] + dtable), dx

    xs, ts = parts(x, chunks, -2), parts(targets, chunks, -1)
    total, dx, dtable = one(xs[0], ts[0])
    dx = dx[None]
    if chunks > 1:
        (total, dtable), rest = lax.scan(add, (total, dtable), (xs[1:], ts[1:]))
        dx = jnp.concatenate([dx, rest])
    dx = jnp.moveaxis(dx, 0, -3).reshape(x.shape)
    return total * weight, (dx, dtable.T.astype(table.dtype))


def _backward(  # type: ignore[no-untyped-def]
    softcap: float | None, chunks: int, look: str, kept: tuple[jax.Array, jax.Array], g: jax.Array
):
    dx, dtable = kept
    return (dx * g).astype(dx.dtype), (dtable * g).astype(dtable.dtype), None


head.defvjp(_forward, _backward)


def parts(a: jax.Array, chunks: int, axis: int) -> jax.Array:
    """[.., time, ..] as [chunks, .., time / chunks, ..]."""
    axis %= a.ndim
    shape = (*a.shape[:axis], chunks, a.shape[axis] // chunks, *a.shape[axis + 1 :])
    return jnp.moveaxis(a.reshape(shape), axis, 0)


def _logits(x: jax.Array, table: jax.Array, softcap: float | None) -> tuple[jax.Array, jax.Array | None]:
    """(logits [.., vocab], the tanh behind a cap)."""
    z = lax.dot_general(x, table, (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=wide(x))
    if softcap is None:
        return z, None
    tanh = jnp.tanh(z * (1 / softcap))
    return softcap * tanh, tanh


def _picked(z: jax.Array, targets: jax.Array, look: str) -> jax.Array:
    """The targets' logits, any number without a target: by a gather, which CPUs are quicker with, or by a comparison of
    all, which a vocab-sharded table splits and accelerators fuse into the sum beside it."""
    if look == "gather":
        return jnp.take_along_axis(z, jnp.maximum(targets, 0)[..., None], -1)[..., 0]
    return jnp.sum(jnp.where(_hits(z, targets), z, 0), -1)


def _hits(z: jax.Array, targets: jax.Array) -> jax.Array:
    """Where a logit is its row's target."""
    return lax.broadcasted_iota(targets.dtype, z.shape, z.ndim - 1) == targets[..., None]
