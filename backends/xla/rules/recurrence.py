"""Recurrences along the stream (how one runs: ../scans), and what stands around them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from planform.compiler.ops import recurrence as ops

from ..policy import wide
from ..scans import FORGET, Kernel, Plain, Scan, decayed
from .contract import Call, Default, rule


@rule(ops.LogDecay, floats="wide")
def log_decay(call: Call, x: jax.Array, rate: jax.Array) -> jax.Array:
    return x * (-call.op.c * jax.nn.softplus(rate))


@rule(ops.LinearRecurrence, floats="own", lazy=Default)
def linear_recurrence(call: Call, x: jax.Array, log_a: jax.Array, position: Any) -> jax.Array:
    time = jnp.arange(x.shape[1], dtype=jnp.int32)[None] if isinstance(position, Default) else position
    log_a = jnp.where(_over(time == 0, x), FORGET, log_a)
    return decayed(scan_of(call, x.shape), x, log_a, jnp.zeros_like(x[:, 0], wide(x)))[0]


@rule(ops.LinearRecurrenceCached, floats="own", lazy=Default)
def linear_recurrence_cached(
    call: Call, x: jax.Array, log_a: jax.Array, state: jax.Array, length: Any, count: Any
) -> tuple[jax.Array, jax.Array]:
    length = length.array() if isinstance(length, Default) else length
    i = jnp.arange(x.shape[1], dtype=jnp.int32)
    log_a = jnp.where(_over(length[:, None] + i == 0, x), FORGET, log_a)
    if not isinstance(count, Default):  # padding hands the state on as it is
        valid = _over(i < count[:, None], x)
        x, log_a = jnp.where(valid, x, 0), jnp.where(valid, log_a, 0)
    state = state.astype(wide(x))
    if x.shape[1] > 1:
        return decayed(scan_of(call, x.shape), x, log_a, state)
    a, b = Plain("sequential", call.op.normalise).coefficients(x, log_a)
    h = a[:, 0] * state + b[:, 0]
    return h[:, None], h


def scan_of(call: Call, shape: tuple[int, ...]) -> Scan:
    """How a recurrence runs: by the form that the policy asks for, else by the one that measures fastest on its
    platform (../scans/README.md), on the parts that the mesh makes of x."""
    form = call.policy.recurrence or {"cpu": "sequential", "tpu": "kernel"}.get(call.policy.platform, "associative")
    normalise = call.op.normalise
    run = Kernel(normalise, call.policy.platform != "tpu") if form == "kernel" else Plain(form, normalise)
    return Scan.of(run, call.mesh, call.split(call.inputs[0]), shape)


def _over(mask: jax.Array, x: jax.Array) -> jax.Array:
    return mask.reshape(*mask.shape, *[1] * (x.ndim - 2))


# -- convolutions and block-diagonal products -------------------------------------------------------------------


@rule(ops.Conv1d, lazy=Default)
def conv1d(call: Call, x: jax.Array, weight: jax.Array, *rest: Any) -> jax.Array:
    *bias, position = rest
    before = [(0, 0), (call.op.width - 1, 0), *[(0, 0)] * (x.ndim - 2)]
    # By default positions run from 0 in every row, and what stands before them is zero already.
    seen = None if isinstance(position, Default) else position
    return _taps(call, jnp.pad(x, before), weight, bias, seen)


@rule(ops.Conv1dCached, lazy=Default)
def conv1d_cached(call: Call, *values: Any) -> tuple[jax.Array, jax.Array]:
    x, weight, bias, kept, _, count = call.op.arguments(values)
    both = jnp.concatenate([kept.astype(x.dtype), x], 1)
    y = _taps(call, both, weight, bias, None)
    if isinstance(count, Default):
        return y, both[:, x.shape[1] :]
    rows = count[:, None] + jnp.arange(call.op.width - 1, dtype=jnp.int32)
    return y, jnp.take_along_axis(both, _over(rows, both), 1)


def _taps(call: Call, x: jax.Array, weight: jax.Array, bias: list[jax.Array], seen: jax.Array | None) -> jax.Array:
    width = call.op.width
    time = x.shape[1] - width + 1
    y: Any = bias[0] if bias else 0
    for s in range(width):
        tap = lax.slice_in_dim(x, width - 1 - s, width - 1 - s + time, axis=1)
        if seen is not None and s:
            tap = jnp.where(_over(seen >= s, x), tap, 0)
        y = y + tap * weight[width - 1 - s]
    return y


@rule(ops.BlockLinear)
def block_linear(call: Call, x: jax.Array, weight: jax.Array, *bias: jax.Array) -> jax.Array:
    parts = x.reshape(*x.shape[:-1], call.op.blocks, -1)
    y = jnp.einsum("...hi,hij->...hj", parts, weight).reshape(x.shape)
    return y + bias[0] if bias else y
