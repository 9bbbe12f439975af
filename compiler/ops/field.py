"""Fields: functions of coordinates, which go from 0 to 1 along each axis and stand in the last dim, float[.., axes].

Along an axis of n cells, cell i reaches from i / n to (i + 1) / n; beyond the border the border's cell goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..ir import Builder, Node, Value
from ..types import Dim, TensorType, TypeMismatch
from .array import array
from .broadcast import Broadcast
from .contract import At, Gradients, Op, register
from .elementwise import Cos, Mul, Neg, Sin, number
from .reduce import Sum
from .terms import Term


@register
@dataclass(frozen=True)
class Sine(Op):
    """y = sin(w0 * x + quarters * pi / 2): the activation of a SIREN, w0 its frequency; its derivative has one quarter
    of a turn more.

    Source: Sitzmann et al., arXiv:2006.09661, section 3.2.
    """

    name: ClassVar[str] = "sine"
    family: ClassVar[str] = "activation"
    w0: float = 30.0
    quarters: int = 0

    def infer(self, *inputs: TensorType) -> TensorType:
        if not inputs[0].is_float:
            raise TypeMismatch(f"`sine` needs a float tensor, its input is {inputs[0]}", code="PF0301")
        return inputs[0]

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        return np.sin(self.w0 * arrays[0] + self.quarters * (np.pi / 2))

    def decompose(self, b: Builder, *values: Value) -> Any:
        angle = b.emit(Mul(), values[0], number(b, self.w0))
        y = b.emit(Cos() if self.quarters % 2 else Sin(), angle)
        return b.emit(Neg(), y) if self.quarters % 4 > 1 else y

    def gradient(self, b: Builder, node: Node, above: Value) -> Gradients | None:
        turned = replace(self, quarters=(self.quarters + 1) % 4)
        return [lambda: (self.w0 * Term(b, above) * Term(b, b.emit(turned, node.inputs[0]))).value]

    def mistakes(self, *inputs: TensorType) -> Mapping[str, Op | Callable[..., Value]]:
        return {"frequency forgotten": replace(self, w0=1.0)} if self.w0 != 1 else {}

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats, random_dims

        x = TensorType("f32", random_dims(rng, 3))
        return cls(float(rng.uniform(0.5, 5)), int(rng.integers(4))), [(x, floats(rng, x))]


def axes_of(coords: TensorType, name: str) -> int:
    """How many axes coordinates have, for the op of that name. Raises: TypeMismatch where that isn't known."""
    if not coords.rank or not coords.is_float:
        raise TypeMismatch(f"`{name}` needs coordinates float[.., axes], not {coords}", code="PF0301")
    n = coords.sizes[-1]
    if not isinstance(n, int):
        raise TypeMismatch(
            f"`{name}` must know how many axes there are, the last dim of {coords} has no size",
            help=f"set it under `dims`: {{{coords.names[-1]}: 2}}",
        )
    return n


def known(cells: Sequence[Dim], name: str) -> list[int]:
    """Numbers of cells as integers. Raises: TypeMismatch for one that is symbolic."""
    for d in cells:
        if not isinstance(d.size, int):
            raise TypeMismatch(f"`{name}` needs a known number of cells, `{d}` has none", help="set it under `dims`")
    return [int(d.size) for d in cells]  # type: ignore[arg-type]


def cell_of(coords: np.ndarray, counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(the cell along each axis, where in it from 0 to 1), for so many cells along each."""
    at = coords * np.asarray(counts, np.float64)
    cell = np.clip(np.floor(at), 0, np.asarray(counts) - 1)
    return cell, at - cell


def cell_terms(b: Builder, coords: Value, counts: Sequence[int]) -> tuple[Term, Term]:
    """`cell_of` in core ops."""
    axes = coords.type.dims[-1:]
    at = Term(b, coords) * array(b, counts, axes)
    cell = at.of("floor").of("maximum", 0.0).of("minimum", array(b, np.asarray(counts) - 1, axes))
    return cell, at - cell


@dataclass(frozen=True)
class _OfCells(Op):
    """Base of what depends on coordinates and the numbers of cells along the axes."""

    family: ClassVar[str] = "field"
    tensors: ClassVar[tuple[str, ...]] = ("coords",)
    cells: tuple[Dim, ...]

    def counts(self, coords: TensorType) -> list[int]:
        """Raises: TypeMismatch where they are not as many as axes."""
        n = axes_of(coords, self.name)
        if n != len(self.cells):
            names = ", ".join(("rows", "columns", "layers", "frames")[:n])
            raise TypeMismatch(
                f"coordinates of {n} axes lie in cells along {n} axes, `{self.name}` is given {len(self.cells)}",
                help=f"{self.name}({names})",
            )
        return known(self.cells, self.name)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats

        n = int(rng.integers(1, 4))
        x = TensorType("f32", (Dim("batch", 2), Dim("points", int(rng.integers(1, 6))), Dim("axes", n)))
        return cls(tuple(Dim(None, int(rng.integers(1, 40))) for _ in range(n))), [(x, floats(rng, x, -0.2, 1.2))]


@register
@dataclass(frozen=True)
class LocalCoordinates(_OfCells):
    """Where in its cell each point lies: y = n * x - cell along each axis, `cells` n of them; from 0 to 1.

    Source: Bauer et al., arXiv:2302.03130, section 3.1.
    """

    name: ClassVar[str] = "local_coordinates"

    def infer(self, *inputs: TensorType) -> TensorType:
        self.counts(inputs[0])
        return inputs[0]

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        return cell_of(arrays[0], self.counts(at.inputs[0]))[1]

    def decompose(self, b: Builder, *values: Value) -> Any:
        return cell_terms(b, values[0], self.counts(values[0].type))[1].value

    def mistakes(self, *inputs: TensorType) -> Mapping[str, Op | Callable[..., Value]]:
        return (
            {"axes in the other order": replace(self, cells=self.cells[::-1])}
            if len({d.size for d in self.cells}) > 1
            else {}
        )


@register
@dataclass(frozen=True)
class BinaryCode(_OfCells):
    """The bits of each point's cell, lowest first, axis after axis: float[.., sum of ceil(log2 n)] of 0 and 1.

    `cells` n along each axis are those of one resolution, its pixels. Source: Bauer et al., arXiv:2302.03130, who give
    it to fields with interpolated latents in the place of coordinates. Nothing flows back.
    """

    name: ClassVar[str] = "binary_code"

    def bits(self, coords: TensorType) -> list[tuple[int, int]]:
        """(axis, place) of each bit."""
        return [(a, k) for a, n in enumerate(self.counts(coords)) for k in range(max((n - 1).bit_length(), 1))]

    def infer(self, *inputs: TensorType) -> TensorType:
        return inputs[0].with_dims((*inputs[0].dims[:-1], Dim(None, len(self.bits(inputs[0])))))

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        cell = cell_of(arrays[0], self.counts(at.inputs[0]))[0].astype(np.int64)
        return np.stack([cell[..., a] >> k & 1 for a, k in self.bits(at.inputs[0])], -1).astype(np.float64)

    def decompose(self, b: Builder, *values: Value) -> Any:
        (coords,) = values
        cell, _ = cell_terms(b, coords, self.counts(coords.type))
        bits = self.bits(coords.type)
        share = [[0.5**k if a == axis else 0.0 for axis in range(len(self.cells))] for a, k in bits]
        # cell / 2^k is exact in floats; its floor is odd where bit k is set.
        shifted = by_row(cell, share, Dim(None, len(bits))).of("floor")
        return (shifted - 2.0 * (0.5 * shifted).of("floor")).value


def by_row(x: Term, rows: Any, out: Dim) -> Term:
    """sum over the last dim of x [.., axes] * rows [out, axes]: float[.., out]; exact where products and sums are,
    which a matrix product in fewer bits would not be."""
    axes = x.value.type.dims[-1:]
    products = each_of(x, out) * array(x.b, rows, (out, *axes))
    return Term(x.b, x.b.emit(Sum(axes), products.value))


def each_of(x: Term, out: Dim) -> Term:
    """x [.., axes] repeated to [.., out, axes]."""
    t = x.value.type
    dims = (*t.dims[:-1], out, t.dims[-1])
    return Term(x.b, x.b.emit(Broadcast(dims, (*range(t.rank - 1), t.rank)), x.value))
