"""Changes of shape, entries looked up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from planform.compiler.ops import broadcast, shape, take
from planform.compiler.ops.array import Array
from planform.compiler.types import TensorType

from .contract import Call, rule


@rule(shape.Rearrange)
def rearrange(call: Call, x: jax.Array) -> jax.Array:
    split, order, _ = call.op.plan(call.inputs[0])
    return x.reshape([d.size for d in split]).transpose(order).reshape(call.outputs[0].shape({}))


@rule(Array)
def array(call: Call) -> jax.Array:
    t = call.outputs[0]
    return jnp.asarray(np.reshape(call.op.values, t.shape({})), call.dtype(t))


@rule(broadcast.Broadcast)
def repeated(call: Call, x: jax.Array) -> jax.Array:
    to = call.outputs[0].shape({})
    others = call.op.others(len(to))
    if call.op.mean:
        x = x * (1 / math.prod(to[i] for i in others))
    return jnp.broadcast_to(jnp.expand_dims(x.transpose(np.argsort(call.op.at)), others), to)


@rule(broadcast.SumTo, floats="wide")
def sum_to(call: Call, x: jax.Array) -> jax.Array:
    others = call.op.others(x.ndim)
    total = (jnp.mean if call.op.mean else jnp.sum)(x, others)
    return total.transpose(np.argsort(np.argsort(call.op.at)))


@rule(take.Take, floats="own")
def taken(call: Call, x: jax.Array, index: jax.Array) -> jax.Array:
    t, way = call.inputs[0], _Way.of(call.op, *call.inputs)

    def one(x: jax.Array, index: jax.Array) -> jax.Array:
        return jnp.take(x, index, way.axis, mode="clip")

    y = way.mapped(one, list(t.names), list(call.inputs[1].names))(x, index)
    return jnp.moveaxis(y, range(y.ndim), way.result)


@rule(take.Put)
def put(call: Call, x: jax.Array, index: jax.Array) -> jax.Array:
    t = call.outputs[0]
    way = _Way.of(call.op, t, call.inputs[1])
    inside = [i for i in range(t.rank) if i not in way.shared]
    shape = [t.shape({})[i] for i in inside]

    def one(x: jax.Array, index: jax.Array) -> jax.Array:
        return jnp.zeros(shape, x.dtype).at[(slice(None),) * way.axis + (index,)].add(x, mode="promise_in_bounds")

    x = jnp.moveaxis(x, way.result, range(x.ndim))
    names = [t.names[i] for i in way.shared] + [None] * (x.ndim - len(way.shared))
    y = way.mapped(one, names, list(call.inputs[1].names))(x, index)
    return jnp.moveaxis(y, range(y.ndim), [*way.shared, *inside])


@dataclass(frozen=True)
class _Way:
    """How `take` goes through its arrays when the dims that x and index share are mapped over, first of all.

    shared  the axes of x that they are
    axis    the one looked up, among those of x that are left
    result  where in the result stand: the shared dims, x's others before the axis, the index's own, x's others after
    """

    names: tuple[str, ...]
    shared: tuple[int, ...]
    axis: int
    result: tuple[int, ...]

    @staticmethod
    def of(op: Any, x: TensorType, index: TensorType) -> _Way:
        axis = op.axis
        dims, rest, _ = op.plan(x, index)
        names = tuple(n for n in index.names if n is not None and x.axis(n) not in (None, axis))
        shared = tuple(x.names.index(n) for n in names)
        at = dict(zip((i for i in range(x.rank) if i != axis), rest))
        others = [i for i in at if i not in shared]
        own = range(axis, axis + len(dims) - len(rest))
        before, after = [at[i] for i in others if i < axis], [at[i] for i in others if i > axis]
        return _Way(names, shared, len(before), (*(at[i] for i in shared), *before, *own, *after))

    def mapped(self, f: Callable[..., Any], x: list[Any], index: list[Any]) -> Callable[..., Any]:
        """f mapped over the shared dims of arrays whose dims have these names."""
        for n in self.names:
            at = (x.index(n), index.index(n))
            rest = [[m for m in names if m != n] for names in (x, index)]
            return jax.vmap(replace(self, names=self.names[1:]).mapped(f, *rest), at)
        return f
