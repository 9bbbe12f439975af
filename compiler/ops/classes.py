"""Classes: whole numbers as distributions, and how often a guess is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..ir import Builder, Value
from ..types import Dim, TensorType, TypeMismatch, scalar
from .array import array
from .broadcast import Broadcast
from .contract import At, Op, register
from .elementwise import Cast
from .reduce import Max, Mean, Sum
from .terms import Term


@register
@dataclass(frozen=True)
class OneHot(Op):
    """y[.., i] = 1 where x = i, else 0, for the `classes` i from 0 on: float[.., classes]; all zeros for other x."""

    name: ClassVar[str] = "one_hot"
    family: ClassVar[str] = "elementwise"
    classes: Dim

    def infer(self, *inputs: TensorType) -> TensorType:
        if inputs[0].is_float or inputs[0].dtype == "bool":
            raise TypeMismatch(f"`one_hot` takes whole numbers, its input is {inputs[0]}", code="PF0301")
        if not isinstance(self.classes.size, int):
            raise TypeMismatch(f"`one_hot` needs a known number of classes, `{self.classes}` has none")
        return TensorType("f32", (*inputs[0].dims, self.classes))

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        return (arrays[0][..., None] == np.arange(self.classes.size)).astype(np.float64)  # type: ignore[arg-type]

    def decompose(self, b: Builder, *values: Value) -> Any:
        t = self.infer(values[0].type)
        x = b.emit(Broadcast(t.dims, tuple(range(t.rank - 1))), b.emit(Cast("f32"), values[0]))
        # Floats are exact up to 2^24, far beyond what logits are made for.
        return Term(b, x).of("equal", array(b, np.arange(t.sizes[-1]), t.dims[-1:])).where(1.0, 0.0).value

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import integers

        t = TensorType("i32", (Dim("batch", 3), Dim("time", int(rng.integers(1, 5)))))
        return cls(Dim("vocab", 5)), [(t, integers(rng, t, -1, 7))]


@register
@dataclass(frozen=True)
class Accuracy(Op):
    """The share of entries whose largest logit [.., classes] is that of their target int[..] (negative: none); a tie
    counts for the guess."""

    name: ClassVar[str] = "accuracy"
    family: ClassVar[str] = "loss"
    tensors: ClassVar[tuple[str, ...]] = ("logits", "targets")
    training_only: ClassVar[bool] = True

    def infer(self, *inputs: TensorType) -> TensorType:
        logits, targets = inputs
        if not logits.is_float or not logits.rank or targets.is_float or targets.dims != logits.dims[:-1]:
            want = ", ".join(map(str, logits.dims[:-1]))
            raise TypeMismatch(f"`accuracy` of logits {logits} needs targets int[{want}], not {targets}")
        return scalar(logits.dtype)

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        logits, targets = arrays
        picked = np.take_along_axis(logits, np.maximum(targets, 0)[..., None], -1)[..., 0]
        valid = targets >= 0
        return np.asarray(np.sum(valid & (picked >= logits.max(-1))) / max(np.sum(valid), 1))

    def decompose(self, b: Builder, *values: Value) -> Any:
        logits, targets = values
        classes = logits.type.dims[-1]
        chosen = Term(b, b.emit(OneHot(classes), targets))
        hit = b.emit(Sum((classes,)), (chosen * Term(b, logits)).value)
        right = (Term(b, b.emit(Max((classes,)), logits)) <= Term(b, hit)).where(1.0, 0.0)
        valid = Term(b, b.emit(Sum((classes,)), chosen.value))
        share = Term(b, b.emit(Mean(), (right * valid).value))
        return (share / Term(b, b.emit(Mean(), valid.value)).of("maximum", 1e-9)).value

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats, integers

        x = TensorType("f32", (Dim("batch", 2), Dim("time", int(rng.integers(1, 5))), Dim("vocab", 6)))
        y = TensorType("i32", x.dims[:-1])
        return cls(), [(x, floats(rng, x)), (y, integers(rng, y, -1, 6))]
