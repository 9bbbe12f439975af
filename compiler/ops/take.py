"""Entries looked up along an axis, and put back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..ir import Builder, Node, Value
from ..types import Dim, TensorType, TypeMismatch
from .contract import At, Cost, Gradients, Op, register


@dataclass(frozen=True)
class _Lookup(Op):
    family: ClassVar[str] = "linear"
    tensors: ClassVar[tuple[str, ...]] = ("x", "index")
    spelled: ClassVar[bool] = False
    axis: int

    def plan(self, x: TensorType, index: TensorType) -> tuple[tuple[Dim, ...], list[int], list[int]]:
        """What comes of looking `index` up in x: the dims, and where x's other axes (in order) and those
        of the index stand among them. Raises: TypeMismatch."""
        axis = self.axis
        if index.dtype not in ("i32", "i64"):
            raise TypeMismatch(f"`{self.name}` needs integers to look up, not {index}", code="PF0301")
        shared = {d.name for d in index.dims if d.name and x.axis(d.name) not in (None, axis)}
        own = [d for d in index.dims if d.name not in shared]
        for d in index.dims:
            if d.name in shared and x.dims[x.axis(d.name)].size != d.size:  # type: ignore[index, arg-type]
                raise TypeMismatch(f"dim `{d.name}` is {d.size} in {index}, and not in {x}", code="PF0312")
        before, after = x.dims[:axis], x.dims[axis + 1 :]
        dims = (*before, *own, *after)
        rest = [i if i < axis else i - 1 + len(own) for i in range(x.rank) if i != axis]
        places = iter(range(axis, axis + len(own)))
        mine = [
            rest[x.axis(d.name) - (x.axis(d.name) > axis)] if d.name in shared else next(places)  # type: ignore[arg-type, operator]
            for d in index.dims
        ]
        return dims, rest, mine

    def where(self, x: TensorType, index: TensorType, array: np.ndarray) -> tuple[np.ndarray, ...]:
        """For each axis of x the entries that are meant, broadcasting against each other to the result."""
        (dims, rest, mine), axis = self.plan(x, index), self.axis

        def at(places: list[int], a: np.ndarray) -> np.ndarray:
            shape = [1] * len(dims)
            for p, n in zip(places, a.shape):
                shape[p] = n
            return a.transpose(np.argsort(places)).reshape(shape)

        found = [at([p], np.arange(x.shape({})[i])) for i, p in zip([j for j in range(x.rank) if j != axis], rest)]
        return (*found[:axis], at(mine, array), *found[axis:])


@register
@dataclass(frozen=True)
class Take(_Lookup):
    """Entries of x along `axis`, by integers 0 <= index < its size: the index's own dims take the axis's place.

    Dims that x and index share by name go along: y[b, i, f] = x[b, index[b, i], f].
    """

    name: ClassVar[str] = "take"

    def infer(self, *inputs: TensorType) -> TensorType:
        return inputs[0].with_dims(self.plan(*inputs)[0])

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        return arrays[0][self.where(at.inputs[0], at.inputs[1], arrays[1])]

    def gradient(self, b: Builder, node: Node, above: Value) -> Gradients | None:
        x, index = node.inputs
        return [lambda: b.emit(Put(self.axis, x.type.dims), above, index), None]

    def cost(self, *inputs: TensorType) -> Cost:
        return Cost(0, 2 * self.infer(*inputs).elements + inputs[1].elements)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats, integers

        x, index, axis = _example(rng)
        return cls(axis), [(x, floats(rng, x)), (index, integers(rng, index, 0, x.shape({})[axis]))]


@register
@dataclass(frozen=True)
class Put(_Lookup):
    """y[`dims`] with x added where `take` along `axis` would have found it, zero elsewhere: the gradient of `take`."""

    name: ClassVar[str] = "put"
    dims: tuple[Dim, ...]

    def infer(self, *inputs: TensorType) -> TensorType:
        x, index = inputs
        made = x.with_dims(self.dims)
        if self.plan(made, index)[0] != x.dims:
            raise TypeMismatch(f"`put` can't lay {x} out along {index} in {made}")
        return made

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        y = np.zeros(at.outputs[0].shape({}))
        np.add.at(y, self.where(at.outputs[0], at.inputs[1], arrays[1]), arrays[0])
        return y

    def gradient(self, b: Builder, node: Node, above: Value) -> Gradients | None:
        return [lambda: b.emit(Take(self.axis), above, node.inputs[1]), None]

    def cost(self, *inputs: TensorType) -> Cost:
        made = self.infer(*inputs)
        return Cost(inputs[0].elements, 2 * inputs[0].elements + made.elements + inputs[1].elements)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats, integers

        x, index, axis = _example(rng)
        taken = Take(axis).infer(x, index)
        array = integers(rng, index, 0, x.shape({})[axis])
        return cls(axis, x.dims), [(taken, floats(rng, taken)), (index, array)]


def _example(rng: np.random.Generator) -> tuple[TensorType, TensorType, int]:
    batch, features, corners = Dim("batch", 3), Dim("features", 2), Dim(None, 2)
    points, cells = Dim("points", int(rng.integers(1, 6))), Dim("cells", int(rng.integers(1, 5)))
    x, index = [
        ((batch, cells, features), (batch, points)),
        ((batch, cells, features), (points, corners)),
        ((cells, features), (batch, points)),
        ((batch, features, cells), (points, batch)),
        ((features, batch, cells), (batch, points, corners)),
    ][int(rng.integers(5))]
    return TensorType("f32", x), TensorType("i32", index), x.index(cells)
