"""Known numbers along dims: selections, corners and strides that other ops decompose into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..ir import Builder
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


def array(b: Builder, values: Any, dims: tuple[Dim, ...]) -> Term:
    """An array in a graph."""
    return Term(b, b.emit(Array(tuple(np.asarray(values, float).ravel().tolist()), dims), hint="array"))
