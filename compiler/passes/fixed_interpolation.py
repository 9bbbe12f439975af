"""Interpolation at points that are known, as a product with a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np

from ..ir import Builder
from ..ops.array import Array, array
from ..ops.contract import At
from ..ops.einsum import Einsum
from ..ops.grid import SampleGrid
from ..ops.shape import Rearrange
from ..types import Dim, TensorType
from .patterns import Attr, Match, Matcher, Var, op
from .rewriting import RewritePass, Rule, Rules

sample_grid, known = op(SampleGrid), op(Array)

MOST = 128
"""Cells up to which products with all of them were measured to be faster than reading those around each point."""


def _sampled(m: Match) -> tuple[Any, int, list[int]]:
    """(the op, the first of the grid's dims of cells, how many cells along each)."""
    sample: Any = m.root.op
    first, counts = sample.cells(m.grid.type, TensorType("f32", m.dims))
    return sample, first, counts


def _few(m: Match, _: Matcher) -> str | None:
    count = prod(_sampled(m)[2])
    return f"{count} cells are more than {MOST}" if count > MOST else None


def _matrix(m: Match, b: Builder) -> Any:
    """How much each cell counts at each point is what a grid of unit vectors gives there."""
    sample, first, counts = _sampled(m)
    cells, points, coords = Dim(None, prod(counts)), m.dims[:-1], TensorType("f32", m.dims)
    units = TensorType("f32", (*m.grid.type.dims[first:-1], cells))
    at = At((units, coords), (sample.infer(units, coords),))
    weights = sample.reference(
        at, np.eye(prod(counts)).reshape(units.shape({})), np.reshape(m["values"], coords.shape({}))
    )
    matrix = array(b, weights, (*points, cells)).value
    names = [f"d{i}" for i in range(m.grid.type.rank)]
    lead, among = " ".join(names[:first]), " ".join(names[first:-1])
    flat = b.emit(Rearrange(f"{' '.join(names)} -> {lead} ({among}) {names[-1]}"), m.grid)
    before, where = "abcdefgh"[:first], "opqrstuv"[: len(points)]
    return b.emit(Einsum(f"{where}y,{before}yz->{before}{where}z", m.root.output.type.dims), matrix, flat)


@dataclass(frozen=True)
class FixedInterpolation(RewritePass):
    """sample_grid(grid, array, mode="linear")  ->  einsum(array, grid): a matrix [points, cells] in the file in
    place of the search for the cells around each point."""

    name: ClassVar[str] = "fixed_interpolation"
    rules: ClassVar[Rules] = (
        Rule(
            "fixed_interpolation",
            sample_grid(Var("grid"), known(values=Attr("values"), dims=Attr("dims")), mode="linear"),
            _matrix,
            (_few,),
        ),
    )
