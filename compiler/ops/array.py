"""Known numbers along dims: selections, corners and strides that other ops decompose into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..ir import Builder, Value
from ..types import Dim, TensorType, TypeMismatch
from .contract import At, Op, register
from .terms import Term


@register
@dataclass(frozen=True)
class Array(Op):
    """The floats `values` along `dims`, the last dim varying fastest."""

    name: ClassVar[str] = "array"
    family: ClassVar[str] = "elementwise"
    tensors: ClassVar[tuple[str, ...]] = ()
    spelled: ClassVar[bool] = False
    values: tuple[float, ...]
    dims: tuple[Dim, ...]

    def infer(self, *inputs: TensorType) -> TensorType:
        t = TensorType("f32", self.dims)
        if t.elements != len(self.values):
            raise TypeMismatch(f"`array` of {len(self.values)} numbers is no {t}")
        return t

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        return np.asarray(self.values, np.float64).reshape(at.outputs[0].shape({}))

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import random_dims

        dims = random_dims(rng, 3)
        return cls(tuple(rng.normal(size=int(TensorType("f32", dims).elements)).tolist()), dims), []  # type: ignore[arg-type]


@register
@dataclass(frozen=True)
class Linspace(Op):
    """float[dim]: evenly spaced numbers from `start` to `stop`, both included. C1: dim is at least 2."""

    name: ClassVar[str] = "linspace"
    family: ClassVar[str] = "elementwise"
    tensors: ClassVar[tuple[str, ...]] = ()
    start: float
    stop: float
    dim: Dim

    def infer(self, *inputs: TensorType) -> TensorType:
        if not isinstance(self.dim.size, int) or self.dim.size < 2:
            raise TypeMismatch(f"`linspace` goes over two or more numbers, not {self.dim.size}")
        return TensorType("f32", (self.dim,))

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        return np.linspace(self.start, self.stop, at.outputs[0].shape({})[0])

    def decompose(self, b: Builder, *values: Value) -> Any:
        return array(b, np.linspace(self.start, self.stop, self.infer().shape({})[0]), (self.dim,)).value

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        start, stop = rng.normal(size=2).tolist()
        return cls(start, stop, Dim("atoms", int(rng.integers(2, 7)))), []


def array(b: Builder, values: Any, dims: tuple[Dim, ...]) -> Term:
    """An array in a graph."""
    return Term(b, b.emit(Array(tuple(np.asarray(values, float).ravel().tolist()), dims), hint="array"))
