"""Tensors laid out along other dims, and added up again: what broadcasting means when it is written out."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np

from ..ir import Builder, Node, Value
from ..types import Dim, TensorType, TypeMismatch, alignment
from .contract import At, Cost, Gradients, Op, register


@dataclass(frozen=True)
class _Placed(Op):
    family: ClassVar[str] = "shape"
    spelled: ClassVar[bool] = False
    dims: tuple[Dim, ...]
    at: tuple[int, ...] = ()
    mean: bool = False

    def check(self, whole: tuple[Dim, ...], part: tuple[Dim, ...]) -> None:
        """Raises: TypeMismatch unless axis i of `part` is as large as axis at[i] of `whole`."""
        if len(set(self.at)) != len(part) or any(whole[a].size != d.size for a, d in zip(self.at, part)):
            whole_text, part_text = (f"[{', '.join(map(str, dims))}]" for dims in (whole, part))
            raise TypeMismatch(f"`{self.name}`: {part_text} has no place in {whole_text} at {list(self.at)}")

    def others(self, rank: int) -> tuple[int, ...]:
        """The axes of the larger side that the smaller one lacks."""
        return tuple(i for i in range(rank) if i not in self.at)

    def cost(self, *inputs: TensorType) -> Cost:
        return Cost(0, inputs[0].elements + self.infer(*inputs).elements)  # type: ignore[union-attr]

    @classmethod
    def pair(cls, rng: np.random.Generator) -> tuple[tuple[Dim, ...], tuple[int, ...]]:
        from .sampling import random_dims

        whole = random_dims(rng, 4)
        at = rng.permutation(len(whole))[: int(rng.integers(0, len(whole) + 1))]
        return whole, tuple(int(i) for i in at)


@register
@dataclass(frozen=True)
class Broadcast(_Placed):
    """x repeated to `dims`: its axis i stands at axis `at`[i] of them, the other axes are copies.

    With `mean` divided by how many copies there are, so that they add up to x.
    """

    name: ClassVar[str] = "broadcast"

    def infer(self, *inputs: TensorType) -> TensorType:
        self.check(self.dims, inputs[0].dims)
        return inputs[0].with_dims(self.dims)

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        shape = at.outputs[0].shape({})
        others = self.others(len(shape))
        x = arrays[0].transpose(np.argsort(self.at)) if self.at else arrays[0]
        y = np.broadcast_to(np.expand_dims(x, others), shape)
        return y / prod(shape[i] for i in others) if self.mean else y

    def gradient(self, b: Builder, node: Node, above: Value) -> Gradients | None:
        return [lambda: b.emit(SumTo(node.inputs[0].type.dims, self.at, self.mean), above)]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats

        whole, at = cls.pair(rng)
        x = TensorType("f32", tuple(whole[i] for i in at))
        return cls(whole, at, bool(rng.random() < 0.5)), [(x, floats(rng, x))]


@register
@dataclass(frozen=True)
class SumTo(_Placed):
    """x summed down to `dims`: axis `at`[i] of x becomes their axis i, the other axes are added up, or with
    `mean` averaged: the gradient of `broadcast`."""

    name: ClassVar[str] = "sum_to"

    def infer(self, *inputs: TensorType) -> TensorType:
        self.check(inputs[0].dims, self.dims)
        return inputs[0].with_dims(self.dims)

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        others = self.others(arrays[0].ndim)
        total = np.mean(arrays[0], others) if self.mean else np.sum(arrays[0], others)
        return total.transpose(np.argsort(np.argsort(self.at))) if self.at else total

    def gradient(self, b: Builder, node: Node, above: Value) -> Gradients | None:
        return [lambda: b.emit(Broadcast(node.inputs[0].type.dims, self.at, self.mean), above)]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats

        whole, at = cls.pair(rng)
        x = TensorType("f32", whole)
        return cls(tuple(whole[i] for i in at), at, bool(rng.random() < 0.5)), [(x, floats(rng, x))]


def broadcast_to(b: Builder, x: Value, dims: tuple[Dim, ...]) -> Value:
    """x along `dims`, laid out by name; x itself where it has them."""
    return x if x.type.dims == dims else b.emit(Broadcast(dims, _places(x.type, dims)), x)


def renamed(b: Builder, x: Value, dims: tuple[Dim, ...]) -> Value:
    """x with dims of the same sizes and other names."""
    return x if x.type.dims == dims else b.emit(Broadcast(dims, tuple(range(len(dims)))), x)


def unbroadcast(b: Builder, x: Value, t: TensorType) -> Value:
    """The gradient with respect to what was broadcast from `t` to x's dims."""
    if x.type.dtype != t.dtype:
        from .elementwise import Cast

        x = b.emit(Cast(t.dtype), x)
    return x if x.type == t else b.emit(SumTo(t.dims, _places(t, x.type.dims)), x)


def _places(small: TensorType, large: tuple[Dim, ...]) -> tuple[int, ...]:
    """Where the dims of a tensor stand among those that it broadcasts against."""
    order, inserted = alignment(small, large)
    slots = [i for i in range(len(large)) if i not in inserted]
    at = dict(zip(order, slots))
    return tuple(at[i] for i in range(small.rank))


def filled(b: Builder, value: float, t: TensorType) -> Value:
    """A tensor of the type with the number everywhere."""
    from .elementwise import Constant

    x: Value = b.emit(Constant(float(value), t.dtype), hint="constant")
    return broadcast_to(b, x, t.dims)


__all__ = ["Broadcast", "SumTo", "broadcast_to", "filled", "renamed", "unbroadcast"]
