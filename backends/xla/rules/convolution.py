"""Convolutions and pools of images [.., height, width, channels]."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from planform.compiler.ops import convolution as ops
from planform.compiler.ops import pooling, windows

from .contract import Call, rule

Pads = list[tuple[int, int]]


def pads(op: windows.Windowed) -> Pads:
    return [(a.before, a.after) for a in op.geometry()]


@rule(ops.Conv2d)
def conv2d(call: Call, x: jax.Array, weight: jax.Array, *bias: jax.Array) -> jax.Array:
    op, axes = call.op, call.op.geometry()
    y = lax.conv_general_dilated(
        x.reshape(-1, *x.shape[-3:]), weight, [a.stride for a in axes], pads(op),
        rhs_dilation=[a.dilation for a in axes], dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=op.groups,
    )  # fmt: skip
    y = y.reshape(*x.shape[:-3], *y.shape[1:])
    return y + bias[0] if bias else y


@rule(pooling.MaxPool)
def max_pool(call: Call, x: jax.Array) -> jax.Array:
    return _reduced(call.op, x, -jnp.inf, lax.max)


@rule(pooling.AvgPool)
def avg_pool(call: Call, x: jax.Array) -> jax.Array:
    total = _reduced(call.op, x, 0.0, lax.add)
    if not call.op.padded:
        return total / math.prod(a.taps for a in call.op.geometry())
    return total / _reduced(call.op, jnp.ones((*x.shape[-3:-1], 1), x.dtype), 0.0, lax.add)


def _reduced(op: windows.Windowed, x: jax.Array, start: float, function: Callable[..., jax.Array]) -> jax.Array:
    """A reduction of each window."""
    lead, axes = x.ndim - 3, op.geometry()
    sizes, strides = ([*[1] * lead, *n, 1] for n in ([a.taps for a in axes], [a.stride for a in axes]))
    padding = [*[(0, 0)] * lead, *pads(op), (0, 0)]
    found: jax.Array = lax.reduce_window(x, np.asarray(start, x.dtype), function, sizes, strides, padding)
    return found


@rule(windows.Windows)
def windows_of(call: Call, x: jax.Array) -> jax.Array:
    rows, columns = call.op.geometry()
    h, w = call.outputs[0].shape({})[-5:-3]
    x = jnp.pad(x, [*[(0, 0)] * (x.ndim - 3), *pads(call.op), (0, 0)], constant_values=call.op.fill)
    found = [
        jnp.stack([x[..., rows.slice(i, h), columns.slice(j, w), :] for j in range(columns.taps)], -2)
        for i in range(rows.taps)
    ]
    return jnp.stack(found, -3)


@rule(windows.OverlapAdd)
def overlap_add(call: Call, x: jax.Array) -> jax.Array:
    axes, image = call.op.geometry(), call.outputs[0].shape({})[-3:-1]
    zero, total = jnp.zeros((), x.dtype), jnp.zeros((), x.dtype)
    for i in range(axes[0].taps):
        for j in range(axes[1].taps):
            part = x[..., i, j, :]
            edges = [(0, 0, 0)] * part.ndim
            for k, (a, tap, n) in enumerate(zip(axes, (i, j), image)):
                # Where the tap's cells stand in the image; those in the padding are cut off.
                before = tap * a.dilation - a.before
                covered = (part.shape[k - 3] - 1) * a.stride + 1
                edges[part.ndim - 3 + k] = (before, n - before - covered, a.stride - 1)
            total = total + lax.pad(part, zero, edges)
    return total
