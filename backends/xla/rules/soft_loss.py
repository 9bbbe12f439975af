"""The loss of one language model's head against the distribution of another's, in chunks of rows.

Neither model's [.., time, vocab] ever exists: a chunk's logits of both are made, used for the loss and its gradient,
and dropped.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from planform.compiler.ops import loss as ops

from ..policy import DTYPES, wide
from .contract import Call, rule
from .loss import apart, parts, pieces


@dataclass(frozen=True)
class Form:
    """What lies between a product and its logits, of the model and of its target, and the number of chunks."""

    cap: float | None = None
    scale: float = 1.0
    other_cap: float | None = None
    other_scale: float = 1.0
    chunks: int = 1


@rule(ops.LinearSoftCrossEntropy, floats="own")
def linear_soft_cross_entropy(call: Call, *arrays: jax.Array) -> jax.Array:
    compute, o = DTYPES[call.policy.compute], call.op
    x, table, y, other = arrays
    x, y = apart(call, x, -2), apart(call, y, -2)
    form = Form(o.softcap, o.scale, o.target_softcap, o.target_scale, pieces(call, x, table, models=2))
    return soft_head(form, *(a.astype(compute) for a in (x, table, y, other)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def soft_head(form: Form, x: jax.Array, table: jax.Array, y: jax.Array, other: jax.Array) -> jax.Array:
    """-mean over rows of the sum over vocab of softmax(b) * log softmax(a), where a = scale * cap(x table^T) and
    b = other_scale * other_cap(y other^T); x [.., time, d], table [vocab, d], y [.., time, e], other [vocab, e].

    Differentiated, it computes the gradients while the chunk's logits exist, those of y and other only where
    somebody asks for them: a frozen teacher costs one product a chunk.
    """

    def one(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        a, _ = _logits(part[0], table, form.cap, form.scale)
        b, _ = _logits(part[1], other, form.other_cap, form.other_scale)
        return total + jnp.sum(_nats(a, jax.nn.softmax(b, -1))), None

    chunks = (parts(x, form.chunks, -2), parts(y, form.chunks, -2))
    total, _ = lax.scan(one, jnp.zeros((), wide(x)), chunks)
    return total / math.prod(x.shape[:-1])


def _nats(a: jax.Array, p: jax.Array) -> jax.Array:
    """-sum of p * log softmax(a) over the last axis, for p that sums to one."""
    return jax.nn.logsumexp(a, -1) - jnp.sum(p * a, -1)


def _logits(x: jax.Array, table: jax.Array, cap: float | None, scale: float) -> tuple[jax.Array, jax.Array | None]:
    """(logits [.., vocab], the tanh behind a cap), float32 or wider."""
    z = lax.dot_general(x, table, (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=wide(x))
    if cap is None:
        return z * scale if scale != 1 else z, None
    tanh = jnp.tanh(z * (1 / cap))
    return (cap * scale) * tanh, tanh


def _slopes(dz: jax.Array, tanh: jax.Array | None, scale: float, x: jax.Array, table: jax.Array) -> Any:
    """Gradients by x [.., d] and by the table, transposed [d, vocab], from that by the logits."""
    if scale != 1:
        dz = dz * scale
    if tanh is not None:
        dz = dz * (1 - tanh * tanh)
    dz = dz.astype(x.dtype)
    dx = lax.dot_general(dz, table, (((dz.ndim - 1,), (0,)), ((), ())))
    flat = dz.reshape(-1, dz.shape[-1])
    narrow = lax.optimization_barrier(x.reshape(flat.shape[0], -1).T)  # of the two factors the narrow one
    return dx, lax.dot(narrow, flat, preferred_element_type=wide(x))


def _forward(form: Form, *given: Any) -> tuple[jax.Array, Any]:
    x, table, y, other = (g.value for g in given)
    mine = given[0].perturbed or given[1].perturbed
    theirs = given[2].perturbed or given[3].perturbed
    if not (mine or theirs):
        return soft_head(form, x, table, y, other), (None,) * 4
    weight = 1 / math.prod(x.shape[:-1])

    def one(xc: jax.Array, yc: jax.Array) -> tuple[tuple[jax.Array, Any, Any], tuple[Any, Any]]:
        """((sum of losses, gradients by both tables), gradients by x and y) of one chunk."""
        a, tanh = _logits(xc, table, form.cap, form.scale)
        b, other_tanh = _logits(yc, other, form.other_cap, form.other_scale)
        p, log_mass = jax.nn.softmax(b, -1), jax.nn.logsumexp(a, -1, keepdims=True)
        nats = log_mass[..., 0] - jnp.sum(p * a, -1)
        dx = dtable = dy = dother = None
        if mine:
            dx, dtable = _slopes((jnp.exp(a - log_mass) - p) * weight, tanh, form.scale, xc, table)
        if theirs:
            db = p * (log_mass - a - nats[..., None]) * weight
            dy, dother = _slopes(db, other_tanh, form.other_scale, yc, other)
        return (jnp.sum(nats), dtable, dother), (dx, dy)

    def add(carry: Any, part: Any) -> Any:
        sums, rows = one(*part)
        return jax.tree.map(jnp.add, carry, sums), rows

    xs, ys = parts(x, form.chunks, -2), parts(y, form.chunks, -2)
    sums, rows = one(xs[0], ys[0])
    rows = jax.tree.map(lambda r: r[None], rows)
    if form.chunks > 1:
        sums, rest = lax.scan(add, sums, (xs[1:], ys[1:]))
        rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), rows, rest)
    total, dtable, dother = sums
    dx, dy = (r if r is None else jnp.moveaxis(r, 0, -3).reshape(a.shape) for r, a in zip(rows, (x, y)))
    dtable, dother = (t if t is None else t.T.astype(a.dtype) for t, a in ((dtable, table), (dother, other)))
    return total * weight, (dx, dtable, dy, dother)


def _backward(form: Form, kept: Any, g: Any) -> tuple[Any, ...]:
    if isinstance(g, SymbolicZero):
        return (None,) * 4
    return tuple(k if k is None else (k * g).astype(k.dtype) for k in kept)


soft_head.defvjp(_forward, _backward, symbolic_zeros=True)
