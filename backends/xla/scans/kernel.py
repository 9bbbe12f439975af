"""The recurrence as TPU kernels: a block of time at a time, what is carried in on-chip memory, a and s never in HBM.

One kernel is the recurrence and what it hands on or back, the other its gradient. A grid step holds
[block of time, block of width] of one example, and walks over its rows in groups.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..policy import wide
from .decayed import Triple
from .forms import Pair
from .plain import Plain, slope_of_sqrt

TIME, WIDTH = 256, 512
"""The largest block: two buffers of each of the gradient's six arrays, and its working space, take 7 MiB in float32."""
TILE = 8
"""Rows of a register."""
GROUP = 32
"""Rows that are taken at once: four registers for every 128 of a block's width, to fill the pipeline. Blocks of time
are multiples of it."""
EDGE = 16
"""Rows that can be read in any dtype."""


def _with_slopes_of_plain(method: Any) -> Any:
    """A method whose gradient is that of `Plain`'s of the same name: what a second derivative takes."""

    @functools.wraps(method)
    def run(self: Kernel, *args: jax.Array) -> Any:
        plain = getattr(Plain("associative", self.normalise), method.__name__)
        f = jax.custom_vjp(lambda *args: method(self, *args))
        f.defvjp(lambda *args: (method(self, *args), args), lambda args, slopes: jax.vjp(plain, *args)[1](slopes))
        return f(*args)

    return run


@dataclass(frozen=True)
class Kernel:
    """A `Run` by the kernels here; `interpret` runs them without a TPU, slowly."""

    normalise: bool
    interpret: bool = False

    @_with_slopes_of_plain
    def forward(self, x: jax.Array, log_a: jax.Array, before: jax.Array) -> Pair:
        h, last = self._scan(False, True, log_a, x, before)
        return h, last

    @_with_slopes_of_plain
    def backward(self, x: jax.Array, log_a: jax.Array, before: jax.Array, h: jax.Array, dh: jax.Array,
                 dlast: jax.Array) -> Triple:  # fmt: skip
        given = [x, log_a, before, h, Edge(h), dh, dlast]
        kernel = functools.partial(_gradient, self.normalise)
        dx, dlog_a, dbefore = blocked(kernel, given, [x, log_a, before], x, True, self.interpret)
        return dx, dlog_a, dbefore

    @_with_slopes_of_plain
    def handed_on(self, x: jax.Array, log_a: jax.Array) -> jax.Array:
        return self._scan(False, False, log_a, x, jnp.zeros_like(x[:, 0], wide(x)))[0]

    @_with_slopes_of_plain
    def handed_back(self, log_a: jax.Array, dh: jax.Array) -> jax.Array:
        return self._scan(True, False, log_a, dh, jnp.zeros_like(dh[:, 0], wide(dh)))[0]

    def _scan(self, reverse: bool, keep: bool, log_a: jax.Array, b: jax.Array, carry: jax.Array) -> Any:
        """(h if it is kept, what goes out)."""
        kernel = functools.partial(_scan, self.normalise and not reverse, reverse)
        return blocked(kernel, [log_a, b, carry], [*[b] * keep, carry], b, reverse, self.interpret)


# -- the kernels ------------------------------------------------------------------------------------------------


def _scan(normalise: bool, reverse: bool, log_a: Any, b: Any, carry: Any, *refs: Any) -> None:
    *kept, out = refs

    def some(at: Any, i: jax.Array, carry: jax.Array) -> jax.Array:
        a, z = decay(log_a[at])
        rows = wider(b[at])
        h, carry = recurrence(a, rows * jnp.sqrt(z) if normalise else rows, carry, reverse)
        for ref in kept:
            ref[at] = h.astype(ref.dtype)
        return carry

    _walk(some, b, out, carry, reverse)


def _gradient(normalise: bool, x: Any, log_a: Any, before: Any, h: Any, edge: Any, dh: Any, dlast: Any,
              dx: Any, dlog_a: Any, dbefore: Any) -> None:  # fmt: skip
    first = pl.program_id(2) == pl.num_programs(2) - 1  # the walk is from the end
    front = jnp.where(first, before[...], wider(edge[...])[-1:])

    def some(at: Any, i: jax.Array, carry: jax.Array) -> jax.Array:
        a, z = decay(log_a[at])
        g, carry = recurrence(a, wider(dh[at]), carry, True)
        ahead = h[pl.ds(pl.multiple_of(jnp.maximum(i * GROUP - EDGE, 0), EDGE), EDGE)]
        ahead = jnp.where(i == 0, front, wider(ahead)[-1:])
        row = lax.broadcasted_iota(jnp.int32, a.shape, 0)
        slope = a * jnp.where(row == 0, ahead, pltpu.roll(wider(h[at]), 1, 0))
        if normalise:
            slope = slope - wider(x[at]) * 2 * a * a * slope_of_sqrt(z)
        dx[at] = (g * jnp.sqrt(z) if normalise else g).astype(dx.dtype)
        dlog_a[at] = (g * slope).astype(dlog_a.dtype)
        return carry

    _walk(some, x, dbefore, dlast, True)


def _walk(some: Any, like: Any, out: Any, carry: Any, reverse: bool) -> None:
    """some(rows, the number of the group, carry) -> carry, for each group of a block's rows. What is carried stands
    where it goes out at last: that block stays on the chip while time passes."""

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        out[...] = carry[...]

    groups = like.shape[0] // GROUP

    def step(i: jax.Array, carry: jax.Array) -> jax.Array:
        i = groups - 1 - i if reverse else i
        return some(pl.ds(pl.multiple_of(i * GROUP, GROUP), GROUP), i, carry)

    out[...] = lax.fori_loop(0, groups, step, out[...])


def recurrence(a: jax.Array, b: jax.Array, carry: jax.Array, reverse: bool) -> Pair:
    """(h, what goes out) of a group of rows. First within each register's rows, all registers at once, in steps of 1,
    2 and 4 rows (Kogge and Stone, 1973); then from register to register."""
    tiles = (-1, TILE, a.shape[1])
    a, b = a.reshape(tiles), b.reshape(tiles)
    row = lax.broadcasted_iota(jnp.int32, a.shape, 1)

    def earlier(x: jax.Array, rows: int, fill: float) -> jax.Array:
        """x as many rows before, or behind; `fill` where there are none."""
        there = row < TILE - rows if reverse else row >= rows
        return jnp.where(there, pltpu.roll(x, TILE - rows if reverse else rows, 1), fill)

    own = a
    if reverse:
        a = earlier(a, 1, 1.0)
    for rows in (1, 2, 4):
        b = a * earlier(b, rows, 0.0) + b
        a = a * earlier(a, rows, 1.0)
    found: list[jax.Array] = []
    for k in range(len(a))[:: -1 if reverse else 1]:
        found.append(a[k] * carry + b[k])
        carry = (own[k] * found[-1])[:1] if reverse else found[-1][-1:]
    return jnp.concatenate(found[:: -1 if reverse else 1]), carry


def decay(log_a: jax.Array) -> Pair:
    """a, and 1 - a^2 without the rounding of a near 1: there, a series (Mosaic has no expm1)."""
    log_a = wider(log_a)
    a, y = jnp.exp(log_a), -2 * log_a
    series = 1 - y * (1 / 2) * (1 - y * (1 / 3) * (1 - y * (1 / 4)))
    return a, jnp.where(y < 0.1, y * series, 1 - a * a)


def wider(x: jax.Array) -> jax.Array:
    return x.astype(wide(x))


# -- blocks -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edge:
    """In place of an array: of each block of time, the last rows of the one before it."""

    array: jax.Array


def blocked(kernel: functools.partial[None], given: Sequence[Any], outs: Sequence[jax.Array], like: jax.Array,
            reverse: bool, interpret: bool) -> Any:  # fmt: skip
    """The kernel on every block: of arrays [batch, time, ..] as `like`, and of [batch, ..] that stay along time.

    Time and what follows it are padded to whole blocks and cut again: an entry of zeros changes nothing.
    """
    batch, time, *rest = like.shape
    width = math.prod(rest)
    steps = -(-time // TIME)
    tall = -(-time // (steps * GROUP)) * GROUP
    broad = min(width, WIDTH)

    def t(i: Any) -> Any:
        return steps - 1 - i if reverse else i

    stream = pl.BlockSpec((None, tall, broad), lambda b, d, i: (b, t(i), d))
    edge = pl.BlockSpec((None, EDGE, broad), lambda b, d, i: (b, jnp.maximum(t(i) * (tall // EDGE) - 1, 0), d))
    end = pl.BlockSpec((None, 1, broad), lambda b, d, i: (b, 0, d))

    def flat(x: Any) -> jax.Array:
        if isinstance(x, Edge):
            return flat(x.array)
        if x.ndim < like.ndim:
            return x.reshape(batch, 1, width)
        return jnp.pad(x.reshape(batch, time, width), ((0, 0), (0, steps * tall - time), (0, 0)))

    def spec(x: Any) -> pl.BlockSpec:
        return edge if isinstance(x, Edge) else end if x.ndim < like.ndim else stream

    arrays = [flat(x) for x in given]
    shapes: list[Any] = [jax.ShapeDtypeStruct(flat(x).shape, x.dtype) for x in outs]
    entries = batch * steps * tall * width
    found = pl.pallas_call(
        kernel,
        grid=(batch, -(-width // broad), steps),
        in_specs=[spec(x) for x in given],
        out_specs=[spec(x) for x in outs],
        out_shape=shapes,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=40 * entries,  # what the compiler's schedule comes to
            transcendentals=2 * entries,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, *shapes)),
        ),
        interpret=interpret,
        name="linear_recurrence_gradient" if kernel.func is _gradient else "linear_recurrence",
    )(*arrays)
    return [y.reshape(x.shape) if x.ndim < like.ndim else y[:, :time].reshape(x.shape) for x, y in zip(outs, found)]
