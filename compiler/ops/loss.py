"""Losses: scalars to minimise, each a mean over the entries that have a target."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..ir import Builder, Value
from ..types import Dim, TensorType, TypeMismatch, align, scalar
from .contract import At, Cost, Op, register
from .elementwise import Add, Log, Mul, Square, Sub, number
from .reduce import Mean, Reduce


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def mean_over_targets(loss: np.ndarray, targets: np.ndarray) -> np.ndarray:
    valid = targets >= 0
    return np.sum(np.where(valid, loss, 0.0)) / np.maximum(np.sum(valid), 1)


@register
@dataclass(frozen=True)
class CrossEntropy(Op):
    """-log softmax(logits)[target], in nats, averaged over all entries with a target.

    logits [.., classes]. targets are classes int[..] (negative: no target), or distributions float[.., classes], for
    which it is -sum(targets * log softmax(logits)) over the classes; every entry has one.
    """

    name: ClassVar[str] = "cross_entropy"
    family: ClassVar[str] = "loss"
    tensors: ClassVar[tuple[str, ...]] = ("logits", "targets")
    training_only: ClassVar[bool] = True

    def infer(self, *inputs: TensorType) -> TensorType:
        logits, targets = inputs
        want = logits.dims if targets.is_float else logits.dims[:-1]
        if targets.is_float and logits.rank and targets.names == logits.names and targets.dims != logits.dims:
            a, b = next((a, b) for a, b in zip(logits.dims, targets.dims) if a != b)
            raise TypeMismatch(
                f"targets of `cross_entropy` that don't fit its logits: {a.name} is {b.size} in them, not {a.size}",
                help="both must be over the same classes, in the same order",
            )
        if not logits.is_float or not logits.rank or targets.dims != want:
            raise TypeMismatch(
                f"`cross_entropy` of logits {logits} needs targets int[{', '.join(map(str, logits.dims[:-1]))}] "
                f"or float[{', '.join(map(str, logits.dims))}], not {targets}"
            )
        return scalar(logits.dtype)

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        logits, targets = arrays
        logp = log_softmax(logits)
        if at.inputs[1].is_float:
            return -np.mean(np.sum(targets * logp, -1))
        picked = np.take_along_axis(logp, np.maximum(targets, 0)[..., None], -1)[..., 0]
        return mean_over_targets(-picked, targets)

    def cost(self, *inputs: TensorType) -> Cost:
        return Cost(5 * inputs[0].elements, inputs[0].elements)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats, integers

        x = TensorType("f32", (Dim("batch", 2), Dim("time", int(rng.integers(1, 5))), Dim("vocab", 6)))
        if rng.random() < 0.5:
            p = np.exp(floats(rng, x))
            return cls(), [(x, floats(rng, x)), (x, p / p.sum(-1, keepdims=True))]
        y = TensorType("i32", x.dims[:-1])
        return cls(), [(x, floats(rng, x)), (y, integers(rng, y, -1, 6))]


@register
@dataclass(frozen=True)
class LinearCrossEntropy(Op):
    """cross_entropy(softcap(x table^T), targets) as one op, so that no [batch, time, vocab] need exist.

    x [.., d], table [vocab, d], targets int[..] (negative: no target); softcap None for none. A backend
    may go through the rows in chunks and keep only what the gradient needs.
    """

    name: ClassVar[str] = "linear_cross_entropy"
    family: ClassVar[str] = "loss"
    tensors: ClassVar[tuple[str, ...]] = ("x", "table", "targets")
    training_only: ClassVar[bool] = True
    spelled: ClassVar[bool] = False
    softcap: float | None = None

    def infer(self, *inputs: TensorType) -> TensorType:
        x, table, targets = inputs
        if x.dims[-1] != table.dims[-1] or targets.dims != x.dims[:-1]:
            raise TypeMismatch(f"`linear_cross_entropy` can't take {x}, {table} and {targets}")
        return scalar(x.dtype)

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        x, table, targets = arrays
        z = x @ table.T
        if self.softcap:
            z = self.softcap * np.tanh(z / self.softcap)
        picked = np.take_along_axis(log_softmax(z), np.maximum(targets, 0)[..., None], -1)[..., 0]
        return mean_over_targets(-picked, targets)

    def cost(self, *inputs: TensorType) -> Cost:
        x, table, _ = inputs
        rows = x.without([-1]).elements
        return Cost(2 * rows * table.elements, x.elements + table.elements)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats, integers

        x = TensorType("f32", (Dim("batch", 2), Dim("time", int(rng.integers(1, 6))), Dim("d", 4)))
        table = TensorType("f32", (Dim("vocab", 7), Dim("d", 4)))
        y = TensorType("i32", x.dims[:-1])
        op = cls(float(rng.uniform(0.5, 3)) if rng.random() < 0.5 else None)
        return op, [(x, floats(rng, x)), (table, floats(rng, table)), (y, integers(rng, y, -1, 7))]


@register
@dataclass(frozen=True)
class LinearSoftCrossEntropy(Op):
    """cross_entropy of one language model's head against the distribution of another's, as one op, so that no
    [batch, time, vocab] of either need exist:

        logits  = scale * softcap(x table^T)
        targets = softmax(target_scale * softcap(target_x target_table^T))

    x [.., d], table [vocab, d], target_x [.., e], target_table [vocab, e]; softcap and target_softcap None for
    none. A mean over all entries. Source: knowledge distillation, arXiv:1503.02531 (scale = 1 / temperature).
    """

    name: ClassVar[str] = "linear_soft_cross_entropy"
    family: ClassVar[str] = "loss"
    tensors: ClassVar[tuple[str, ...]] = ("x", "table", "target_x", "target_table")
    training_only: ClassVar[bool] = True
    spelled: ClassVar[bool] = False
    softcap: float | None = None
    scale: float = 1.0
    target_softcap: float | None = None
    target_scale: float = 1.0

    def infer(self, *inputs: TensorType) -> TensorType:
        x, table, y, other = inputs
        fits = x.dims[-1:] == table.dims[1:] and y.dims[-1:] == other.dims[1:]
        if not fits or x.dims[:-1] != y.dims[:-1] or table.dims[0] != other.dims[0]:
            raise TypeMismatch(f"`linear_soft_cross_entropy` can't take {x}, {table}, {y} and {other}")
        return scalar(x.dtype)

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        x, table, y, other = arrays
        z = _head(x, table, self.softcap, self.scale)
        p = np.exp(log_softmax(_head(y, other, self.target_softcap, self.target_scale)))
        return -np.mean(np.sum(p * log_softmax(z), -1))

    def decompose(self, b: Builder, *values: Value) -> Value:
        from .linear import Unembed
        from .norm import Softcap, Softmax

        def head(x: Value, table: Value, softcap: float | None, scale: float) -> Value:
            z: Value = b.emit(Unembed(), x, table)
            if softcap is not None:
                z = b.emit(Softcap(softcap), z)
            return z if scale == 1 else b.emit(Mul(), z, number(b, scale))

        x, table, y, other = values
        z = head(x, table, self.softcap, self.scale)
        p = b.emit(Softmax(), head(y, other, self.target_softcap, self.target_scale))
        found: Value = b.emit(CrossEntropy(), z, p)
        return found

    def cost(self, *inputs: TensorType) -> Cost:
        x, table, y, other = inputs
        rows = x.without([-1]).elements
        elements = x.elements + table.elements + y.elements + other.elements
        return Cost(2 * rows * (table.elements + other.elements), elements)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats

        rows, vocab = (Dim("batch", 2), Dim("time", int(rng.integers(1, 6)))), Dim("vocab", 7)
        d, e = Dim("d", 4), Dim("e", 3)
        types = [TensorType("f32", dims) for dims in ((*rows, d), (vocab, d), (*rows, e), (vocab, e))]
        caps = [float(rng.uniform(0.5, 3)) if rng.random() < 0.5 else None for _ in range(2)]
        scales = [float(rng.uniform(0.3, 2)) if rng.random() < 0.5 else 1.0 for _ in range(2)]
        return cls(caps[0], scales[0], caps[1], scales[1]), [(t, floats(rng, t)) for t in types]


def _head(x: np.ndarray, table: np.ndarray, softcap: float | None, scale: float) -> np.ndarray:
    z = x @ table.T
    return scale * (z if softcap is None else softcap * np.tanh(z / softcap))


@register
@dataclass(frozen=True)
class CountTargets(Op):
    """How many entries of targets int[..] are not negative, as a float: the weight of a mean loss."""

    name: ClassVar[str] = "count_targets"
    family: ClassVar[str] = "loss"
    tensors: ClassVar[tuple[str, ...]] = ("targets",)
    training_only: ClassVar[bool] = True
    spelled: ClassVar[bool] = False

    def infer(self, *inputs: TensorType) -> TensorType:
        return scalar("f32")

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        return np.asarray(np.sum(arrays[0] >= 0), np.float64)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import integers

        y = TensorType("i32", (Dim("batch", 2), Dim("time", 5)))
        return cls(), [(y, integers(rng, y, -2, 3))]


@register
@dataclass(frozen=True)
class Mse(Reduce):
    """Mean squared error: the mean of (x - y)^2 over the dims `over` (all, if none are named)."""

    name: ClassVar[str] = "mse"
    family: ClassVar[str] = "loss"
    tensors: ClassVar[tuple[str, ...]] = ("x", "y")

    def infer(self, *inputs: TensorType) -> TensorType:
        x, y = inputs
        if not x.is_float or not y.is_float or set(x.dims) != set(y.dims):
            raise TypeMismatch(f"`mse` compares two float tensors of the same dims, not {x} and {y}")
        return TensorType(x.dtype, x.without(self.axes(x)).dims)

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        x, y = arrays
        return np.mean(np.square(x - align(y, at.inputs[1], at.inputs[0].dims)), axis=self.axes(at.inputs[0]))

    def decompose(self, b: Builder, *values: Value) -> Any:
        # The difference has the dims of the first operand that has them all.
        return b.emit(Mean(self.over), b.emit(Square(), b.emit(Sub(), *values)))

    def cost(self, *inputs: TensorType) -> Cost:
        return Cost(3 * inputs[0].elements, 2 * inputs[0].elements)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats

        op, [(x, first)] = super().draw(rng)
        return op, [(x, first), (x, floats(rng, x))]


@register
@dataclass(frozen=True)
class Psnr(Op):
    """Peak signal-to-noise ratio in dB: 10 log10(peak^2 / mean squared error) of each entry of the first dim (each
    image), averaged over them, or `apart`. `peak` is the largest value a signal takes."""

    name: ClassVar[str] = "psnr"
    family: ClassVar[str] = "loss"
    tensors: ClassVar[tuple[str, ...]] = ("x", "y")
    training_only: ClassVar[bool] = True
    peak: float = 1.0
    apart: bool = False

    def each(self, dim: str, *inputs: TensorType) -> Op:
        return replace(self, apart=inputs[0].rank > 0 and inputs[0].names[0] == dim)

    def infer(self, *inputs: TensorType) -> TensorType:
        if inputs[0].rank < 2:
            raise TypeMismatch(f"`psnr` needs signals [batch, ..], not {inputs[0]}")
        return Mse(inputs[0].dims[1:] if self.apart else inputs[0].dims).infer(*inputs)

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        x, y = arrays
        error = np.square(x - align(y, at.inputs[1], at.inputs[0].dims))
        decibels = 10 * np.log10(self.peak**2 / np.mean(error, axis=tuple(range(1, x.ndim))))
        return decibels if self.apart else np.mean(decibels)

    def decompose(self, b: Builder, *values: Value) -> Any:
        error = b.emit(Mse(values[0].type.dims[1:]), *values)
        decibels = b.emit(Mul(), b.emit(Log(), error), number(b, -10 / math.log(10)))
        found = decibels if self.apart else b.emit(Mean(), decibels)
        return b.emit(Add(), found, number(b, 20 * math.log10(self.peak))) if self.peak != 1 else found

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats

        x = TensorType("f32", (Dim("batch", 3), Dim("points", int(rng.integers(1, 6))), Dim(None, 2)))
        op = cls(float(rng.uniform(0.5, 3)), bool(rng.random() < 0.5))
        return op, [(x, floats(rng, x)), (x, floats(rng, x))]
