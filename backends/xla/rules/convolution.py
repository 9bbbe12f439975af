"""Convolutions and pools of images [.., height, width, channels]. The choices for CPUs are measured (../README.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from planform.compiler.ops import convolution as ops
from planform.compiler.ops import pooling, windows
from planform.compiler.ops.windows import Axis

from .contract import Call, rule
from .linear import matmul, over_rows, transposed

Axes = tuple[Axis, Axis]


FEW = 64
"""Windows on an image up to which a convolution is a product with the cells of each, written out, on CPUs."""


@rule(ops.Conv2d)
def conv2d(call: Call, x: jax.Array, weight: jax.Array, *bias: jax.Array) -> jax.Array:
    op, axes, count = call.op, call.op.geometry(), call.outputs[0].shape({})[-3:-1]
    one = axes[0].taps == axes[1].taps == 1
    if call.policy.platform == "cpu" and op.groups == 1 and (one or math.prod(count) <= FEW):
        padded = _padded(x, axes)
        cells = [_tap(padded, axes, tap, count) for tap in _taps(axes)]
        y = _product(call, cells[0] if one else jnp.concatenate(cells, -1), weight)
    else:
        y = lax.conv_general_dilated(
            x.reshape(-1, *x.shape[-3:]), weight, [a.stride for a in axes], _pads(axes),
            rhs_dilation=[a.dilation for a in axes], dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=op.groups,
        )  # fmt: skip
        y = y.reshape(*x.shape[:-3], *y.shape[1:])
    return y + bias[0] if bias else y


def _product(call: Call, x: jax.Array, weight: jax.Array) -> jax.Array:
    """x [.., height, width, k] times a kernel as one matrix, which XLA has a better way with than with kernels."""
    split = any(call.split(call.inputs[0])[1:-1])  # devices that share an image's cells would take them to each other
    y = product(x if split else x.reshape(-1, x.shape[-1]), weight.reshape(x.shape[-1], -1))
    return y.reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def product(x: jax.Array, w: jax.Array) -> jax.Array:
    """x [.., k] w [k, n] -> [.., n], with a gradient that doesn't copy an image even where `outer` would: XLA makes it
    again from all that leads to it, in the copy's order. A ResNet-50's step takes 7% less (2 cores of Zen 5)."""
    return matmul(x, w)


def _product_backward(kept: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = kept
    return transposed(dy, w), over_rows(x, dy)


product.defvjp(lambda x, w: (matmul(x, w), (x, w)), _product_backward)


# -- cells of windows --------------------------------------------------------------------------------------------


def _pads(axes: Axes) -> list[tuple[int, int]]:
    return [(a.before, a.after) for a in axes]


def _padded(x: jax.Array, axes: Axes, fill: float = 0.0) -> jax.Array:
    around = [*[(0, 0)] * (x.ndim - 3), *_pads(axes), (0, 0)]
    return jnp.pad(x, around, constant_values=fill) if any(map(any, around)) else x


def _tap(padded: jax.Array, axes: Axes, tap: Sequence[int], count: Sequence[int]) -> jax.Array:
    """The cells that one tap of all windows meets: [.., height', width', channels]."""
    rows, columns = (a.slice(i, n) for a, i, n in zip(axes, tap, count))
    return padded[..., rows, columns, :]


Shift = Callable[[jax.Array, float], jax.Array]
"""An array [.., height', width', channels] by windows, moved to the cells that a tap meets, and what lies around it."""


def _spread(part: Callable[[int, int, Shift], jax.Array], axes: Axes, image: Sequence[int]) -> jax.Array:
    """The image in which each cell is the sum of what taps lay on it, by tap, the arrays that it is made of shifted.

    Cells that are equal modulo the strides meet the same taps, so that each such class is a sum of shifted parts: XLA
    writes an image for each part that it spreads by itself. What is shifted is a slice of an array padded once, for
    XLA's loops ask at each element whether they are inside of a padding.
    """
    rows, columns = axes
    whole = [-(-(a.before + n + a.after) // a.stride) for a, n in zip(axes, image)]
    far = [(a.taps - 1) * a.dilation // a.stride for a in axes]

    def moved(tap: tuple[int, int]) -> jax.Array:
        first = [f - i * a.dilation // a.stride for a, f, i in zip(axes, far, tap)]

        def shift(x: jax.Array, fill: float) -> jax.Array:
            around = [(0, 0, 0)] * x.ndim
            around[-3:-1] = [(f, n - k, 0) for f, n, k in zip(far, whole, x.shape[-3:-1])]
            x = lax.pad(x, jnp.asarray(fill, x.dtype), around)
            return x[..., first[0] : first[0] + whole[0], first[1] : first[1] + whole[1], :]

        return part(*tap, shift)

    def of(r: int, c: int) -> jax.Array:
        met = [t for t in _taps(axes) if [i * a.dilation % a.stride for a, i in zip(axes, t)] == [r, c]]
        return sum(map(moved, met[1:]), moved(met[0])) if met else jnp.zeros_like(moved((0, 0)))

    lines = [jnp.stack([of(r, c) for c in range(columns.stride)], -2) for r in range(rows.stride)]
    y = jnp.stack([a.reshape(*a.shape[:-3], -1, a.shape[-1]) for a in lines], -3)
    y = y.reshape(*y.shape[:-4], -1, *y.shape[-2:])
    return y[..., rows.before : rows.before + image[0], columns.before : columns.before + image[1], :]


def _taps(axes: Axes) -> list[tuple[int, int]]:
    return [(i, j) for i in range(axes[0].taps) for j in range(axes[1].taps)]


@rule(windows.Windows)
def windows_of(call: Call, x: jax.Array) -> jax.Array:
    axes, count = call.op.geometry(), call.outputs[0].shape({})[-5:-3]
    x = _padded(x, axes, call.op.fill)
    found = jnp.stack([_tap(x, axes, tap, count) for tap in _taps(axes)], -2)
    return found.reshape(call.outputs[0].shape({}))


@rule(windows.OverlapAdd)
def overlap_add(call: Call, x: jax.Array) -> jax.Array:
    axes, image = call.op.geometry(), call.outputs[0].shape({})[-3:-1]
    return _spread(lambda i, j, shift: shift(x[..., i, j, :], 0), axes, image)


# -- pools -------------------------------------------------------------------------------------------------------


@rule(pooling.MaxPool)
def max_pool(call: Call, x: jax.Array) -> jax.Array:
    if call.policy.platform == "cpu":
        return largest(call.op.geometry(), x)
    return _reduced(call.op, x, -jnp.inf, lax.max)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def largest(axes: Axes, x: jax.Array) -> jax.Array:
    """The largest cell of each window. The gradient flows to the first of equal ones, as XLA's own does; that is made
    by going through the windows one by one on CPUs, this by comparing tap by tap."""
    count = [a.count(n) for a, n in zip(axes, x.shape[-3:-1])]
    padded, found = _padded(x, axes, -jnp.inf), None
    for tap in _taps(axes):
        part = _tap(padded, axes, tap, count)
        found = part if found is None else jnp.maximum(found, part)
    assert found is not None
    return found


def _largest_forward(axes: Axes, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y = largest(axes, x)
    return y, (x, y)


def _largest_backward(axes: Axes, kept: tuple[jax.Array, jax.Array], above: jax.Array) -> tuple[jax.Array]:
    x, y = kept
    padded, taps = _padded(x, axes, -jnp.inf), _taps(axes)
    first = jnp.full(y.shape, -1, jnp.int32)
    for n, tap in reversed(list(enumerate(taps))):
        first = jnp.where(_tap(padded, axes, tap, y.shape[-3:-1]) == y, n, first)

    def part(i: int, j: int, shift: Shift) -> jax.Array:
        return jnp.where(shift(first, -1) == taps.index((i, j)), shift(above, 0), 0)

    return (_spread(part, axes, x.shape[-3:-1]),)


largest.defvjp(_largest_forward, _largest_backward)


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
    padding = [*[(0, 0)] * lead, *_pads(axes), (0, 0)]
    found: jax.Array = lax.reduce_window(x, np.asarray(start, x.dtype), function, sizes, strides, padding)
    return found
