"""Ops that draw random numbers. The draw is an input of the graph, keyed by seed, step and path, so that the
reference and every number of replicas see the same numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..ir import Builder, Value
from ..types import TensorType, TypeMismatch
from .contract import At, Op, register
from .elementwise import LessEqual, Mul, Where, number


@register
@dataclass(frozen=True)
class Dropout(Op):
    """y = x / (1 - rate) where a uniform draw is at least `rate`, else 0; x itself outside training.

    Source: Srivastava et al., JMLR 15 (2014). Constraint C1: 0 <= rate < 1.
    """

    name: ClassVar[str] = "dropout"
    family: ClassVar[str] = "random"
    trains_only: ClassVar[bool] = True
    rate: float

    def reads(self) -> tuple[str, ...]:
        return ("uniform",)

    def infer(self, *inputs: TensorType) -> TensorType:
        if not 0 <= self.rate < 1:
            raise TypeMismatch(f"a dropout rate of {self.rate:g}", code="PF0324", help="0 <= rate < 1")
        if not inputs[0].is_float:
            raise TypeMismatch(f"`dropout` needs a float tensor, its input is {inputs[0]}", code="PF0301")
        return inputs[0]

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        x, uniform = arrays
        return np.where(uniform >= self.rate, x / (1 - self.rate), 0.0)

    def decompose(self, b: Builder, *values: Value) -> Value:
        x, uniform = values
        kept = b.emit(LessEqual(), number(b, self.rate), uniform)
        scaled = b.emit(Mul(), x, number(b, 1 / (1 - self.rate)))
        return b.emit(Where(), kept, scaled, number(b, 0.0))

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats, random_dims

        x = TensorType("f32", random_dims(rng, 3))
        return cls(float(rng.uniform(0, 0.9))), [(x, floats(rng, x)), (x, rng.random(x.shape({})))]
