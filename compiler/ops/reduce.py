"""Reductions over named dims."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..types import Dim, TensorType, TypeMismatch
from .contract import At, Cost, Op, register


@dataclass(frozen=True)
class Reduce(Op):
    """Base of the family: reduces the dims `over` away, all of them if none are named."""

    family: ClassVar[str] = "reduce"
    function: ClassVar[Callable[..., Any]]
    over: tuple[Dim, ...] | None = None

    def axes(self, x: TensorType) -> tuple[int, ...]:
        """The reduced axes of x. Raises: TypeMismatch for a dim that x does not have."""
        if self.over is None:
            return tuple(range(x.rank))
        found = []
        for d in self.over:
            if d.name is None:
                if not x.rank or x.dims[-1] != d:
                    raise TypeMismatch(f"`{self.name}` over an unnamed dim takes the last one, {x} has no {d}")
                found.append(x.rank - 1)
                continue
            axis = x.axis(d.name)
            if axis is None:
                raise TypeMismatch(f"`{self.name}` over `{d.name}`, which {x} does not have")
            found.append(axis)
        return tuple(found)

    def infer(self, *inputs: TensorType) -> TensorType:
        return inputs[0].without(self.axes(inputs[0]))

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        return type(self).function(arrays[0], axis=self.axes(at.inputs[0]))

    def cost(self, *inputs: TensorType) -> Cost:
        return Cost(inputs[0].elements, inputs[0].elements)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats, random_dims

        x = TensorType("f32", random_dims(rng, 3))
        over = None
        if rng.random() < 0.7:
            over = tuple(x.dims[i] for i in rng.permutation(x.rank)[: int(rng.integers(1, x.rank + 1))])
        return cls(over), [(x, floats(rng, x))]


@register
@dataclass(frozen=True)
class Sum(Reduce):
    """The sum of x over the dims `over` (all, if none are named)."""

    name: ClassVar[str] = "sum"
    function = staticmethod(np.sum)


@register
@dataclass(frozen=True)
class Mean(Reduce):
    """The mean of x over the dims `over` (all, if none are named)."""

    name: ClassVar[str] = "mean"
    function = staticmethod(np.mean)

    def infer(self, *inputs: TensorType) -> TensorType:
        found = super().infer(*inputs)
        return found if found.is_float else found.with_dtype("f32")


@register
@dataclass(frozen=True)
class Max(Reduce):
    """The largest entry of x over the dims `over` (all, if none are named)."""

    name: ClassVar[str] = "max"
    function = staticmethod(np.max)
