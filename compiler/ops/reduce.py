"""Reductions over named dims."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..ir import Builder, Node, Value
from ..types import Dim, TensorType, TypeMismatch
from .broadcast import Broadcast
from .contract import At, Cost, Gradients, Op, register
from .terms import Term


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
        found: list[int] = []
        for d in reversed(self.over):
            if d.name is None:
                mine = [i for i, e in enumerate(x.dims) if e == d and i not in found]
                if not mine:
                    raise TypeMismatch(f"`{self.name}` over {d}, and {x} has no such unnamed dim")
                found.append(mine[-1])
                continue
            axis = x.axis(d.name)
            if axis is None:
                raise TypeMismatch(f"`{self.name}` over `{d.name}`, which {x} does not have")
            found.append(axis)
        return tuple(reversed(found))

    def spread(self, b: Builder, node: Node, x: Value, mean: bool = False) -> Value:
        """x, of the result's dims, along those of the operand."""
        t, gone = node.inputs[0].type, self.axes(node.inputs[0].type)
        kept = tuple(i for i in range(t.rank) if i not in gone)
        made: Value = b.emit(Broadcast(t.dims, kept, mean), x)
        return made

    def each(self, dim: str, *inputs: TensorType) -> Op:
        kept = tuple(d for d in inputs[0].dims if d.name != dim)
        return self if self.over is not None or len(kept) == inputs[0].rank else replace(self, over=kept)

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

    def gradient(self, b: Builder, node: Node, above: Value) -> Gradients | None:
        return [lambda: self.spread(b, node, above)]


@register
@dataclass(frozen=True)
class Mean(Reduce):
    """The mean of x over the dims `over` (all, if none are named)."""

    name: ClassVar[str] = "mean"
    function = staticmethod(np.mean)

    def infer(self, *inputs: TensorType) -> TensorType:
        found = super().infer(*inputs)
        return found if found.is_float else found.with_dtype("f32")

    def gradient(self, b: Builder, node: Node, above: Value) -> Gradients | None:
        return [lambda: self.spread(b, node, above, mean=True)]


@register
@dataclass(frozen=True)
class Max(Reduce):
    """The largest entry of x over the dims `over` (all, if none are named); equal ones share the gradient."""

    name: ClassVar[str] = "max"
    function = staticmethod(np.max)

    def gradient(self, b: Builder, node: Node, above: Value) -> Gradients | None:
        def shared() -> Value:
            x, most = Term(b, node.inputs[0]), Term(b, self.spread(b, node, node.output))
            one = (x.of("equal", most)).where(1.0, 0.0)
            count = Term(b, self.spread(b, node, b.emit(Sum(self.over), one.value)))
            return (Term(b, self.spread(b, node, above)) * one / count).value

        return [shared]
