"""Batch normalisation: by running statistics, and in training by those of the batch, which the running ones follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..ir import Builder, Init, Value
from ..size import divide
from ..types import Dim, TensorType, TypeMismatch
from .broadcast import Broadcast, SumTo, renamed
from .contract import At, Cost, Op, ParameterDecl, Reach, register
from .elementwise import Add, Mul, Neg, Rsqrt, Square, Sub, number
from .shape import Rearrange


@register
@dataclass(frozen=True)
class BatchNorm(Op):
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias, for each entry of the last dim; in float32 or wider.

    `mean` and `variance` [d] are buffers: outside training they are constants, and in training they follow the
    batch's (`batch_norm_training`) at 1 - `decay` a step. `scale` starts as `scale_init` and `bias` as 0; without
    `affine` there are neither.
    `groups`: statistics are those of so many equal parts of the batch, each part normalised by its own.

    Source: Ioffe and Szegedy, arXiv:1502.03167. C1: x has at least two dims. C2: `groups` divides the first.
    """

    name: ClassVar[str] = "batch_norm"
    family: ClassVar[str] = "norm"
    groups: int = 1
    decay: float = 0.9
    epsilon: float = 1e-5
    scale_init: float = 1.0
    affine: bool = True

    def parameters(self, *inputs: TensorType) -> Mapping[str, ParameterDecl]:
        self.check(inputs[0])
        last = inputs[0].dims[-1:]
        scale = ParameterDecl(last, Init("constant", (self.scale_init,)))
        return {"scale": scale, "bias": ParameterDecl(last, Init("zeros"))} if self.affine else {}

    def buffers(self, *inputs: TensorType) -> Mapping[str, ParameterDecl]:
        last = inputs[0].dims[-1:]
        return {"mean": ParameterDecl(last, Init("zeros")), "variance": ParameterDecl(last, Init("ones"))}

    def training(self) -> Op:
        return BatchNormTraining(**self.attributes())

    def check(self, x: TensorType) -> None:
        """Raises: TypeMismatch."""
        if not x.is_float or x.rank < 2:
            raise TypeMismatch(f"`{self.name}` needs floats with at least two dims, its input is {x}", code="PF0301")
        batch = x.sizes[0]
        if self.groups < 1 or (isinstance(batch, int) and batch % self.groups):
            raise TypeMismatch(f"`{x.dims[0]}` can't be split into {self.groups} equal groups", code="PF0325")

    def infer(self, *inputs: TensorType) -> Any:
        self.check(inputs[0])
        return inputs[0]

    def reference(self, at: At, *arrays: np.ndarray) -> Any:
        x, *affine, mean, variance = arrays
        return _affine((x - mean) / np.sqrt(variance + self.epsilon), affine)

    def decompose(self, b: Builder, *values: Value) -> Any:
        x, *affine, mean, variance = values
        factor = b.emit(Rsqrt(), b.emit(Add(), variance, number(b, self.epsilon)))
        if affine:
            factor = b.emit(Mul(), factor, affine[0])
        shift = b.emit(Neg(), b.emit(Mul(), mean, factor))
        if affine:
            shift = b.emit(Add(), shift, affine[1])
        return b.emit(Add(), b.emit(Mul(), x, _along(b, factor, x)), _along(b, shift, x))

    def cost(self, *inputs: TensorType) -> Cost:
        return Cost(2 * inputs[0].elements, 2 * inputs[0].elements)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats

        groups = int(rng.integers(1, 4))
        op = cls(groups, float(rng.uniform(0.5, 1)), 1e-2, 1.0, bool(rng.random() < 0.5))
        names = [("batch", groups * int(rng.integers(1, 4))), ("rows", 3), ("columns", 3)][: int(rng.integers(1, 4))]
        x = TensorType("f32", (*(Dim(n, s) for n, s in names), Dim("d", int(rng.integers(1, 5)))))
        declared = [*op.parameters(x).values(), *op.buffers(x).values()]
        types = [x, *(TensorType(p.dtype, p.dims) for p in declared)]
        low = [-3.0] * (len(types) - 1) + [0.1]  # a variance
        return op, [(t, floats(rng, t, at)) for t, at in zip(types, low)]


@register
@dataclass(frozen=True)
class BatchNormTraining(BatchNorm):
    """(`batch_norm` by the statistics of x over all dims but the last, and the buffers' new values).

    new mean = decay * mean + (1 - decay) * that of x, and so the variance, the mean square deviation. Of several
    groups they follow the average. A batch is one array on any mesh, so its statistics are those of all replicas;
    `groups` = n are what each of n replicas would have by itself. The gradient goes through the statistics of x.
    """

    name: ClassVar[str] = "batch_norm_training"
    spelled: ClassVar[bool] = False
    kept: ClassVar[int] = 2

    def infer(self, *inputs: TensorType) -> Any:
        self.check(inputs[0])
        return (inputs[0], *inputs[-2:])

    def reference(self, at: At, *arrays: np.ndarray) -> Any:
        x, *affine, mean, variance = arrays
        rows = x.reshape(self.groups, -1, x.shape[-1])
        m, v = rows.mean(1, keepdims=True), rows.var(1, keepdims=True)
        y = ((rows - m) / np.sqrt(v + self.epsilon)).reshape(x.shape)
        after = (self.decay * old + (1 - self.decay) * new.mean((0, 1)) for old, new in ((mean, m), (variance, v)))
        return (_affine(y, affine), *after)

    def decompose(self, b: Builder, *values: Value) -> Any:
        x, *affine, mean, variance = values
        rows = x
        if self.groups > 1:
            if divide(x.type.sizes[0], self.groups) is None:
                return None  # how many there are in a group must be known
            rest = " ".join(f"d{i}" for i in range(1, x.type.rank))
            pattern = f"(groups batch) {rest} -> groups batch {rest}"
            rows = b.emit(Rearrange(pattern, (Dim("groups", self.groups),)), x)
        at = (0, rows.type.rank - 1) if self.groups > 1 else (rows.type.rank - 1,)
        each = tuple(rows.type.dims[i] for i in at)

        def over(v: Value) -> Value:
            found: Value = b.emit(SumTo(each, at, mean=True), v)
            return found

        m = over(rows)
        centred = b.emit(Sub(), rows, b.emit(Broadcast(rows.type.dims, at), m))
        v = over(b.emit(Square(), centred))
        factor = b.emit(Rsqrt(), b.emit(Add(), v, number(b, self.epsilon)))
        y = b.emit(Mul(), centred, b.emit(Broadcast(rows.type.dims, at), factor))
        if self.groups > 1:
            y = b.emit(Rearrange(f"groups batch {rest} -> (groups batch) {rest}"), y)
            y = renamed(b, y, x.type.dims)
        if affine:
            y = b.emit(Add(), b.emit(Mul(), y, _along(b, affine[0], x)), _along(b, affine[1], x))

        def follow(old: Value, new: Value) -> Value:
            if self.groups > 1:
                new = b.emit(SumTo(old.type.dims, (1,), mean=True), new)
            step = b.emit(Mul(), b.emit(Sub(), new, old), number(b, 1 - self.decay))
            found: Value = b.emit(Add(), old, step)
            return found

        return y, follow(mean, m), follow(variance, v)

    def reach(self) -> Reach:
        return Reach(None, None)

    def cost(self, *inputs: TensorType) -> Cost:
        return Cost(7 * inputs[0].elements, 4 * inputs[0].elements)


def _affine(y: np.ndarray, affine: list[np.ndarray]) -> np.ndarray:
    return y * affine[0] + affine[1] if affine else y


def _along(b: Builder, v: Value, x: Value) -> Value:
    """A vector along the last dim of x."""
    found: Value = b.emit(Broadcast(x.type.dims, (x.type.rank - 1,)), v)
    return found
