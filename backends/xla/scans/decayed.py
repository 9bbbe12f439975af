"""The recurrence as models have it: from x and log a, on one device or split over several, with its gradient.

h_t = a_t h_(t-1) + s_t x_t, where s_t = sqrt(1 - a_t^2) or 1. Where nothing of what came before counts, log a is
`FORGET`: then a is 0 and s is 1. Where an entry isn't there, log a and x are 0: then h stays as it is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from .forms import Pair

FORGET = -1e9
Triple = tuple[jax.Array, jax.Array, jax.Array]


class Run(Protocol):
    """One device's way to run it. x, log_a, h and their slopes are [batch, time, ..] and of one dtype, what goes in and
    out at the ends is [batch, ..] and float32 or wider, as all that is computed."""

    def forward(self, x: jax.Array, log_a: jax.Array, before: jax.Array) -> Pair:
        """(h, the last h)."""

    def backward(self, x: jax.Array, log_a: jax.Array, before: jax.Array, h: jax.Array, dh: jax.Array,
                 dlast: jax.Array) -> Triple:  # fmt: skip
        """The slopes of x, log_a and before."""

    def handed_on(self, x: jax.Array, log_a: jax.Array) -> jax.Array:
        """The last h where nothing came before."""

    def handed_back(self, log_a: jax.Array, dh: jax.Array) -> jax.Array:
        """The slope of before where none comes from behind."""


@dataclass(frozen=True)
class Scan:
    """A run, and how x is split: the axes of the mesh that each of its dims goes along."""

    run: Run
    mesh: Mesh | None = None
    split: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, run: Run, mesh: Mesh | None, split: Sequence[Sequence[str] | None], shape: tuple[int, ...]) -> Scan:
        """For an x of this shape. Of a dim that its devices don't divide, each has all; time is padded instead."""
        if mesh is None:
            return cls(run)
        even = (
            axes if axes and (dim == 1 or shape[dim] % devices(mesh, axes) == 0) else ()
            for dim, axes in enumerate(split)
        )
        return cls(run, mesh, tuple(map(tuple, even)))

    @property
    def time(self) -> tuple[str, ...]:
        return self.split[1] if self.mesh else ()


def devices(mesh: Mesh | None, axes: Sequence[str]) -> int:
    return math.prod(mesh.shape[axis] for axis in axes) if mesh else 1


def decayed(scan: Scan, x: jax.Array, log_a: jax.Array, before: jax.Array) -> Pair:
    """(h in x's dtype, the last h in before's); before [batch, ..] is what h was in front of the first entry."""
    pad = -x.shape[1] % devices(scan.mesh, scan.time)
    if not pad:
        return _decayed(scan, x, log_a, before)
    time = x.shape[1]
    widths = [(0, pad if axis == 1 else 0) for axis in range(x.ndim)]
    h, last = _decayed(scan, jnp.pad(x, widths), jnp.pad(log_a, widths), before)
    return h[:, :time], last


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _decayed(scan: Scan, x: jax.Array, log_a: jax.Array, before: jax.Array) -> Pair:
    return _forward(scan, x, log_a, before)[0]


def _forward(scan: Scan, x: jax.Array, log_a: jax.Array, before: jax.Array) -> tuple[Pair, Any]:
    def local(x: jax.Array, log_a: jax.Array, before: jax.Array) -> Triple:
        if not scan.time:
            return *scan.run.forward(x, log_a, before), before[:, None]
        mine, last = pass_on(scan.time, log_a, scan.run.handed_on(x, log_a), before, False)
        return scan.run.forward(x, log_a, mine)[0], last, mine[:, None]

    h, last, mine = _split(scan, local, "xx.", "x.x")(x, log_a, before)
    return (h, last), (x, log_a, mine, h)


def _backward(scan: Scan, kept: Any, slopes: Pair) -> Triple:
    def local(x: Any, log_a: Any, mine: Any, h: Any, dh: Any, dlast: Any) -> Triple:
        if not scan.time:
            return scan.run.backward(x, log_a, mine[:, 0], h, dh, dlast)
        behind, first = pass_on(scan.time, log_a, scan.run.handed_back(log_a, dh), dlast, True)
        return *scan.run.backward(x, log_a, mine[:, 0], h, dh, behind)[:2], first

    return _split(scan, local, "xxxxx.", "xx.")(*kept, *slopes)


_decayed.defvjp(_forward, _backward)


def _split(scan: Scan, local: Any, given: str, found: str) -> Any:
    """`local` on every device's part. A letter for each array: x for one that is split as x is, a dot for one without
    time, of which all devices along time have the same."""
    if scan.mesh is None:
        return local
    batch, time, *rest = scan.split
    specs = {"x": PartitionSpec(batch, time, *rest), ".": PartitionSpec(batch, *rest)}
    return jax.shard_map(
        local,
        mesh=scan.mesh,
        in_specs=tuple(specs[c] for c in given),
        out_specs=tuple(specs[c] for c in found),
        check_vma=False,
    )


def pass_on(axes: tuple[str, ...], log_a: jax.Array, last: jax.Array, before: jax.Array, reverse: bool) -> Pair:
    """(what comes into this device's part, what goes out of the whole).

    last is what this part would hand on if nothing came in, and what comes in decays by the product of its a. Each
    device gets those two of all, [parts, batch, ..], which is as much smaller than x as a part is long.
    """
    decay = jnp.exp(jnp.sum(log_a.astype(last.dtype), 1))
    every = lax.all_gather((decay, last), axes)

    def step(carry: jax.Array, part: Pair) -> Pair:
        return part[0] * carry + part[1], carry

    out, into = lax.scan(step, before, every, reverse=reverse)
    return into[lax.axis_index(axes)], out
