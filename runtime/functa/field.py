"""A trained field: signals to latents, latents to values at any points."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from planform.backends.xla import Policy, from_logical, lower, storage
from planform.compiler.elaborate import elaborate, elaborate_fit
from planform.compiler.ir import Graph, Input
from planform.compiler.passes.known import known
from planform.compiler.passes.pipeline import optimise
from planform.compiler.program import Program, Update, program
from planform.compiler.types import TensorType
from planform.spec import Spec, ast

from ..data.signals import centres
from ..errors import UserError
from ..run import parameters_of_run, spec_of_run

Arrays = dict[str, np.ndarray]

BEFORE = "latent's"  # the start of a step from anywhere; no name of a spec
TILE = 2048
"""Points that are rendered at once: a tile of a large image, or several small ones."""


@dataclass(frozen=True)
class Field:
    """The model of a run that fits latents to signals.

    chosen      its training program, whose one update has an inner loop over `variable`
    parameters  by logical name
    coords, values  names of the data's fields
    """

    spec: Spec
    chosen: Program
    parameters: Mapping[str, np.ndarray]

    @staticmethod
    def of_run(run: str | Path, step: int | None = None, overrides: Sequence[str] = ()) -> Field:
        """Raises: UserError where the run trains no field; SpecError."""
        spec = spec_of_run(run, overrides)
        chosen = program(spec)
        if chosen.data.name != "signals" or not all(u.inner for u in chosen.updates) or len(chosen.updates) != 1:
            raise UserError(
                f"{run} fits no latents to signals", help="it needs `data: signals(..)` and an `inner` loop"
            )
        return Field(spec, chosen, parameters_of_run(run, step))

    @property
    def update(self) -> Update:
        return self.chosen.updates[0]

    @property
    def variable(self) -> str:
        assert self.update.inner is not None
        return self.update.inner.variable

    @property
    def coords(self) -> str:
        return self.chosen.data.fields[0]

    @property
    def values(self) -> str:
        return self.chosen.data.fields[1]

    @cached_property
    def renderer(self) -> Graph:
        """The graph from coordinates and a latent to values. Raises: UserError where there is none."""
        for name, g in self.spec.graphs.items():
            if set(g.inputs) == {self.coords, self.variable}:
                graph = elaborate(self.spec, name)
                if self.values in graph.outputs:
                    return graph
        raise UserError(
            f"{self.spec.name} has no graph from `{self.coords}` and `{self.variable}` to `{self.values}`",
            help="rendering calls that graph: its inputs are these two, `outputs` names the values",
        )

    def type(self, name: str) -> TensorType:
        """Of an input of the graph that renders."""
        return next(v.type for v in self.renderer.of_kind(Input) if v.name == name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one latent. Raises: UserError where its sizes are open."""
        t = self.type(self.variable)
        if not all(isinstance(n, int) for n in t.sizes[1:]):
            raise UserError(f"`{self.variable}` is {t}: its sizes must be known", help="set them under `dims`")
        return tuple(int(n) for n in t.sizes[1:])  # type: ignore[arg-type]

    @property
    def axes(self) -> int:
        return int(self.type(self.coords).sizes[-1])  # type: ignore[arg-type]

    @property
    def channels(self) -> int:
        return int(self.renderer.outputs[self.values].type.sizes[-1])  # type: ignore[arg-type]

    def fingerprint(self) -> str:
        """Of everything that decides what a latent means: the graph's text and the parameters."""
        digest = hashlib.blake2b(self.spec.source.text.encode(), digest_size=16)
        for name in sorted(self.parameters):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(self.parameters[name], np.float32).tobytes())
        return digest.hexdigest()

    # -- fitting and rendering -----------------------------------------------------------------------------

    def fitter(self, coords: np.ndarray, steps: int | None = None) -> Callable[[Mapping[str, Any]], Arrays]:
        """A function from a batch of signals, [batch, points, ..] by field, to their latents, and `loss` and the
        metrics of each, float[batch]; compiled once a shape.

        coords  of all signals alike, [points, axes]
        steps   in place of the program's
        """
        return self._fitter(coords, steps, None)

    def descent(self, coords: np.ndarray, batch: Mapping[str, Any], steps: int) -> Iterator[Arrays]:
        """What `fitter` gives of a batch after 1, 2 .. `steps` steps."""
        found = self._fitter(coords, 1, None)(batch)
        yield found
        onwards = self._fitter(coords, 1, BEFORE) if steps > 1 else None
        for _ in range(steps - 1):
            assert onwards is not None
            found = onwards({**batch, BEFORE: found[self.variable]})
            yield found

    def _fitter(
        self, coords: np.ndarray, steps: int | None, start: str | None
    ) -> Callable[[Mapping[str, Any]], Arrays]:
        """The inner loop from where the program starts it, or from the input `start`."""
        inner, evaluate = self.update.inner, (self.spec.train.values.get("evaluate") or {})  # type: ignore[union-attr]
        assert inner is not None
        types = {v.name: v.type for v in self.update.heldout.inputs if v.name in (self.coords, self.values)}
        if start is not None:
            inner = replace(inner, start=ast.Name(start, span=inner.start.span))
            types[start] = self.type(self.variable)
        graph = elaborate_fit(self.spec, inner, types, steps=steps, metrics=evaluate.get("metrics") or {})
        run = self._compiled(known(graph, {self.coords: coords}))
        return lambda batch: run({n: batch[n] for n in types if n != self.coords})

    @cached_property
    def _render(self) -> Callable[[Mapping[str, Any]], Arrays]:
        return self._compiled(self.renderer)

    def render(self, latents: np.ndarray, shape: Sequence[int], tile: int = TILE) -> np.ndarray:
        """Values of latents [n, ..] at the centres of a grid: float32[n, *shape, channels]. See `tiles`."""
        out = np.empty((len(latents), math.prod(shape), self.channels), np.float32)
        for rows, points, values in self.tiles(latents, shape, tile):
            out[rows, points] = values
        return out.reshape(len(latents), *shape, self.channels)

    def tiles(
        self, latents: np.ndarray, shape: Sequence[int], tile: int = TILE
    ) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """(which latents, which points, their values float32[.., channels]), tile by tile; a grid's points are counted
        with the last axis varying fastest.

        Whatever the resolution, `tile` points are in memory at once: some rows of one image, or several images.
        """
        total = math.prod(shape)
        points = min(tile, total)
        rows = min(max(tile // total, 1), max(len(latents), 1))
        for row in range(0, len(latents), rows):
            some = _filled(latents[row : row + rows], rows)
            for first in range(0, total, points):
                index = np.minimum(np.arange(first, first + points), total - 1)  # the last tile is filled up
                coords = np.broadcast_to(centres(index, shape), (rows, points, len(shape)))
                made = self._render({self.coords: coords, self.variable: some})[self.values]
                stop, end = min(row + rows, len(latents)), min(first + points, total)
                yield slice(row, stop), slice(first, end), made[: stop - row, : end - first]

    def _compiled(self, graph: Graph) -> Callable[[Mapping[str, Any]], Arrays]:
        optimised, policy = optimise(graph, "xla", "training"), Policy()
        needed = {name for s in storage(optimised, policy).values() for name in s.logical}
        missing = needed.difference(self.parameters)
        if missing:
            raise UserError(f"the run has no parameter {min(missing)}", help="was it trained with this spec?")
        stored = from_logical(lambda name: np.asarray(self.parameters[name]), optimised, policy)
        run = jax.jit(lower(optimised, policy))
        return lambda inputs: {k: np.asarray(v) for k, v in run(stored, dict(inputs)).items()}


def _filled(rows: np.ndarray, count: int) -> np.ndarray:
    """Rows repeated up to `count`, so that every call has one shape."""
    return rows if len(rows) == count else rows[np.arange(count) % len(rows)]


def psnr(image: np.ndarray, other: np.ndarray, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio of two signals, in dB."""
    error = float(np.mean(np.square(image.astype(np.float64) - other.astype(np.float64))))
    return 10 * math.log10(peak**2 / max(error, 1e-20))
