"""Grids of features, read at coordinates (field.py): [.., rows, columns, features], with as many dims of cells as
coordinates have axes, in their order. Dims that a grid and coordinates share by name, such as batch, go along."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any, ClassVar

import numpy as np

from ..ir import Builder, Value
from ..types import Dim, TensorType, TypeMismatch, align
from .array import array
from .contract import At, Cost, Op, register
from .elementwise import Cast
from .field import axes_of, cell_of, cell_terms, each_of, known
from .reduce import Sum
from .shape import Rearrange
from .take import Take
from .terms import Term

MODES = ("nearest", "linear")
_AROUND = "neighbours'"  # no name of a spec


@dataclass(frozen=True)
class _OnGrid(Op):
    family: ClassVar[str] = "field"
    tensors: ClassVar[tuple[str, ...]] = ("grid", "coords")

    def cells(self, grid: TensorType, coords: TensorType) -> tuple[int, list[int]]:
        """(the first of the grid's dims of cells, how many cells along each). Raises: TypeMismatch."""
        n = axes_of(coords, self.name)
        first = grid.rank - 1 - n
        if first < 0 or not grid.is_float:
            raise TypeMismatch(
                f"`{self.name}` at coordinates of {n} axes needs a grid float[.., {n} dims of cells, features], "
                f"not {grid}"
            )
        for d in coords.dims[:-1]:
            axis = grid.axis(d.name) if d.name else None
            if axis is not None and (axis >= first or grid.dims[axis].size != d.size):
                raise TypeMismatch(f"dim `{d.name}` of {coords} is another one in {grid}", code="PF0312")
        return first, known(grid.dims[first:-1], self.name)

    def points(self, grid: TensorType, coords: TensorType) -> tuple[Dim, ...]:
        """The dims of a number for each point: the grid's before its cells, then those that only coords has."""
        before = grid.dims[: self.cells(grid, coords)[0]]
        names = {d.name for d in before}
        return (*before, *(d for d in coords.dims[:-1] if d.name is None or d.name not in names))

    def look_up(self, at: At, grid: np.ndarray, cell: np.ndarray) -> np.ndarray:
        """The features in cells [.., axes], of those beyond the border in the border's: [points.., features]."""
        first, counts = self.cells(*at.inputs[:2])
        points = self.points(*at.inputs[:2])
        inside = np.clip(cell, 0, np.asarray(counts) - 1).astype(np.int64)
        lead = at.inputs[1].without([-1])
        index = [align(inside[..., a], lead, points) for a in range(len(counts))]
        before = [np.arange(n).reshape(-1, *(1 for _ in points[i + 1 :])) for i, n in enumerate(grid.shape[:first])]
        found: np.ndarray = grid[(*before, *index)]
        return found

    def take(self, b: Builder, grid: Value, coords: Value, cell: Term) -> Value:
        """`look_up` in core ops; cells that are inside, as floats [.., axes]."""
        first, counts = self.cells(grid.type, coords.type)
        strides = [prod(counts[a + 1 :]) for a in range(len(counts))]
        axes = cell.value.type.dims[-1:]
        index = b.emit(Sum(axes), (cell * array(b, strides, axes)).value)
        if len(counts) > 1:
            names = [f"d{i}" for i in range(grid.type.rank)]
            left, cells, right = names[:first], names[first:-1], names[-1]
            grid = b.emit(Rearrange(f"{' '.join(names)} -> {' '.join(left)} ({' '.join(cells)}) {right}"), grid)
        found: Value = b.emit(Take(first), grid, b.emit(Cast("i32"), index))
        return found

    @staticmethod
    def example(rng: np.random.Generator) -> list[TensorType]:
        n = int(rng.integers(1, 4))
        batch, points, features = Dim("batch", 2), Dim("points", int(rng.integers(1, 6))), Dim("features", 3)
        cells = [Dim(name, int(rng.integers(1, 5))) for name in ("rows", "columns", "layers")[:n]]
        grid = [*([batch] if rng.random() < 0.7 else []), *cells, features]
        coords = [*([batch] if rng.random() < 0.7 else []), points, Dim("axes", n)]
        return [TensorType("f32", tuple(grid)), TensorType("f32", tuple(coords))]

    @staticmethod
    def values(rng: np.random.Generator, grid: TensorType, coords: TensorType) -> list[Any]:
        from .sampling import floats

        return [(grid, floats(rng, grid)), (coords, floats(rng, coords, -0.2, 1.2))]


def between(coords: np.ndarray, counts: Sequence[int], corners: bool) -> tuple[np.ndarray, np.ndarray]:
    """(along each axis the lower of the two cells whose centres a point lies between, how far on the way to the
    upper one's), the outermost cells on the border with `corners`."""
    n = np.asarray(counts)
    at = np.clip(coords * (n - 1) if corners else coords * n - 0.5, 0, n - 1)
    lower = np.clip(np.floor(at), 0, np.maximum(n - 2, 0))
    return lower, at - lower


def between_terms(b: Builder, coords: Value, counts: Sequence[int], corners: bool) -> tuple[Term, Term]:
    """`between` in core ops."""
    n, axes = np.asarray(counts), coords.type.dims[-1:]
    at = Term(b, coords) * array(b, n - 1 if corners else n, axes)
    if not corners:
        at = at - 0.5
    at = at.of("maximum", 0.0).of("minimum", array(b, n - 1, axes))
    lower = at.of("floor").of("minimum", array(b, np.maximum(n - 2, 0), axes))
    return lower, at - lower


def _ways(axes: int) -> np.ndarray:
    """For each of the 2^axes neighbours whether it is the lower (0) or the upper (1) along each axis."""
    return np.asarray(list(product((0, 1), repeat=axes)))


@register
@dataclass(frozen=True)
class GridNeighbours(_OnGrid):
    """The features of the 2^axes cells whose centres lie around each point: float[.., points, out, features].

    `out` names the neighbours' dim. The first axis varies slowest: (0, 0), (0, 1), (1, 0), (1, 1), lower before upper;
    beyond the border both are the border's. `corners` as in `sample_grid`, which adds them up with fixed weights; with
    learned ones, of local coordinates for instance, that is `contract(neighbours, weights, over=out)`.
    """

    name: ClassVar[str] = "grid_neighbours"
    out: Dim
    corners: bool = False

    def infer(self, *inputs: TensorType) -> TensorType:
        grid, coords = inputs
        n = len(self.cells(grid, coords)[1])
        if self.out.size != 2**n:
            raise TypeMismatch(f"in {n} axes a point has {2**n} neighbours, not {self.out.size}", code="PF0312")
        return grid.with_dims((*self.points(grid, coords), self.out, grid.dims[-1]))

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        grid, coords = arrays
        _, counts = self.cells(*at.inputs)
        lower, _ = between(coords, counts, self.corners)
        return np.stack([self.look_up(at, grid, lower + way) for way in _ways(len(counts))], -2)

    def decompose(self, b: Builder, *values: Value) -> Any:
        grid, coords = values
        _, counts = self.cells(grid.type, coords.type)
        lower, _ = between_terms(b, coords, counts, self.corners)
        return self.around(b, grid, coords, lower, counts, self.out)

    def around(self, b: Builder, grid: Value, coords: Value, lower: Term, counts: Sequence[int], out: Dim) -> Value:
        """The neighbours of cells [.., axes] that are the lower ones."""
        cell = each_of(lower, out) + array(b, _ways(len(counts)), (out, *coords.type.dims[-1:]))
        last = array(b, np.asarray(counts) - 1, coords.type.dims[-1:])
        return self.take(b, grid, coords, cell.of("minimum", last))

    def cost(self, *inputs: TensorType) -> Cost:
        return Cost(0, 2 * self.infer(*inputs).elements + inputs[1].elements)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        grid, coords = cls.example(rng)
        out = Dim("neighbours", 2 ** int(coords.sizes[-1]))  # type: ignore[arg-type]
        return cls(out, bool(rng.random() < 0.5)), cls.values(rng, grid, coords)


@register
@dataclass(frozen=True)
class SampleGrid(_OnGrid):
    """A grid's features at each point: float[.., points, features].

    mode     "nearest": those of the cell the point lies in. "linear": between the centres of the cells around it,
             linearly along each axis (bilinear, trilinear); beyond the outermost centres theirs
    corners  for "linear": the outermost cells have their centres on the border, at 0 and 1

    Nothing flows from the nearest cell back to coords. Source: Bauer et al., arXiv:2302.03130, section 3.1.
    """

    name: ClassVar[str] = "sample_grid"
    mode: str = "nearest"
    corners: bool = False

    def infer(self, *inputs: TensorType) -> TensorType:
        if self.mode not in MODES:
            help = "one of " + ", ".join(f'"{m}"' for m in MODES) + '; "linear" is bilinear in two axes'
            raise TypeMismatch(f'`sample_grid` has no mode "{self.mode}"', code="PF0324", help=help)
        grid, coords = inputs
        return grid.with_dims((*self.points(grid, coords), grid.dims[-1]))

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        grid, coords = arrays
        _, counts = self.cells(*at.inputs)
        if self.mode == "nearest":
            return self.look_up(at, grid, cell_of(coords, counts)[0])
        lower, there = between(coords, counts, self.corners)
        lead, points = at.inputs[1].without([-1]), at.outputs[0].dims[:-1]
        total = np.zeros(at.outputs[0].shape({}))
        for way in _ways(len(counts)):
            weight = np.prod(np.where(way, there, 1 - there), -1)
            total += align(weight, lead, points)[..., None] * self.look_up(at, grid, lower + way)
        return total

    def decompose(self, b: Builder, *values: Value) -> Any:
        grid, coords = values
        _, counts = self.cells(grid.type, coords.type)
        if self.mode == "nearest":
            return self.take(b, grid, coords, cell_terms(b, coords, counts)[0])
        ways, axes = _ways(len(counts)), coords.type.dims[-1:]
        out = Dim(_AROUND, len(ways))
        lower, there = between_terms(b, coords, counts, self.corners)
        # 1 - there for a lower cell, there for an upper one.
        share = each_of(there, out) * array(b, 2 * ways - 1, (out, *axes)) + array(b, 1 - ways, (out, *axes))
        weight = _entry(share, 0)
        for a in range(1, len(counts)):
            weight = weight * _entry(share, a)
        around = GridNeighbours(out, self.corners).around(b, grid, coords, lower, counts, out)
        return b.emit(Sum((out,)), (Term(b, around) * weight).value)

    def mistakes(self, *inputs: TensorType) -> Mapping[str, Op | Callable[..., Value]]:
        if self.mode == "nearest":
            return {"linear instead of nearest": replace(self, mode="linear")}
        centres = "corners instead of centres" if not self.corners else "centres instead of corners"
        return {
            "nearest instead of linear": replace(self, mode="nearest"),
            centres: replace(self, corners=not self.corners),
        }

    def cost(self, *inputs: TensorType) -> Cost:
        out, around = self.infer(*inputs), 1 if self.mode == "nearest" else 2 ** axes_of(inputs[1], self.name)
        flops = 0 if self.mode == "nearest" else 2 * around * out.elements
        return Cost(flops, (around + 1) * out.elements + inputs[1].elements)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        return cls(str(rng.choice(MODES)), bool(rng.random() < 0.3)), cls.values(rng, *cls.example(rng))


def _entry(x: Term, axis: int) -> Term:
    """Entry `axis` of x's last dim: x [.., axes] -> [..]."""
    axes = x.value.type.dims[-1:]
    chosen = array(x.b, np.arange(int(axes[0].size)) == axis, axes)  # type: ignore[arg-type]
    return Term(x.b, x.b.emit(Sum(axes), (x * chosen).value))
