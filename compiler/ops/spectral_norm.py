"""Spectral normalisation: a weight over its largest singular value, by power iteration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..ir import Builder, Init, Value
from ..types import Dim, TensorType, TypeMismatch
from .broadcast import Broadcast, SumTo
from .contract import At, Cost, Op, ParameterDecl, Reach, register
from .elementwise import Add, Div, Mul, Sqrt, Square, Stop, number
from .reduce import Sum

UPDATES = ("per_forward", "per_step")
TINY = 1e-12
"""What is added to a length before it divides."""


@register
@dataclass(frozen=True)
class SpectralNorm(Op):
    """x / sigma, where sigma is the largest singular value of x as a matrix: the dim `axis` against all others.

    It is found by one step of power iteration from the buffer u [axis], which starts as normal(1):
    v = x u / |x u|, w = v x / |v x|, sigma = v x w. In training w becomes u: with `update` "per_forward" at every
    evaluation, as in torch and in the paper's own code; with "per_step" once in a loss, whose evaluations then all have
    the same sigma, which is computed once. u, v and w are constants to the gradient, which goes through x and sigma.

    Source: Miyato et al., arXiv:1802.05957, algorithm 1. C1: x has at least two dims. C2: `update` is one of the two.
    """

    name: ClassVar[str] = "spectral_norm"
    family: ClassVar[str] = "norm"
    axis: int = -1
    update: str = "per_forward"

    @property
    def once(self) -> bool:
        return self.update == "per_step"

    def buffers(self, *inputs: TensorType) -> Mapping[str, ParameterDecl]:
        return {"u": ParameterDecl((self.dim(inputs[0]),), Init("normal", (1.0,)))}

    def training(self) -> Op:
        return SpectralNormTraining(self.axis, self.update)

    def dim(self, x: TensorType) -> Dim:
        """The dim that u has. Raises: TypeMismatch."""
        if not x.is_float or x.rank < 2 or not -x.rank <= self.axis < x.rank:
            message = f"`{self.name}` needs floats with at least two dims, and an axis of them; its input is {x}"
            raise TypeMismatch(message, code="PF0301")
        if self.update not in UPDATES:
            raise TypeMismatch(f'there is no update "{self.update}"', code="PF0324", help=" or ".join(UPDATES))
        return x.dims[self.axis]

    def infer(self, *inputs: TensorType) -> Any:
        self.dim(inputs[0])
        return inputs[0]

    def iteration(self, x: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(x over its norm, w) in NumPy."""
        matrix = np.moveaxis(x, self.axis, -1).reshape(-1, len(u))
        v = matrix @ u
        v = v / (np.linalg.norm(v) + TINY)
        w = matrix.T @ v
        w = w / (np.linalg.norm(w) + TINY)
        return x / (v @ matrix @ w), w

    def reference(self, at: At, *arrays: np.ndarray) -> Any:
        return self.iteration(*arrays)[0]

    def iterate(self, b: Builder, x: Value, u: Value) -> tuple[Value, Value]:
        """(x over its norm, w) in simpler ops; without a matrix in between, so that any axis will do."""
        t, here = x.type, self.axis % x.type.rank
        others = tuple(i for i in range(t.rank) if i != here)

        def onto(vector: Value, at: tuple[int, ...], kept: tuple[int, ...]) -> Value:
            spread = b.emit(Broadcast(t.dims, at), vector)
            return b.emit(SumTo(tuple(t.dims[i] for i in kept), kept), b.emit(Mul(), x, spread))  # type: ignore[no-any-return]

        def unit(vector: Value) -> Value:
            length = b.emit(Sqrt(), b.emit(Sum(), b.emit(Square(), vector)))
            found = b.emit(Div(), vector, b.emit(Add(), length, number(b, TINY)))
            return b.emit(Stop(), found)  # type: ignore[no-any-return]

        v = unit(onto(u, (here,), others))
        projected = onto(v, others, (here,))
        w = unit(projected)
        return b.emit(Div(), x, b.emit(Sum(), b.emit(Mul(), projected, w))), w

    def decompose(self, b: Builder, *values: Value) -> Any:
        return self.iterate(b, *values)[0]

    def reach(self) -> Reach:
        return Reach(None, None)

    def cost(self, *inputs: TensorType) -> Cost:
        return Cost(5 * inputs[0].elements, 4 * inputs[0].elements)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats, random_dims

        x = TensorType("f32", random_dims(rng, 4, 2))
        op = cls(int(rng.integers(-x.rank, x.rank)), str(rng.choice(UPDATES)))
        u = TensorType("f32", (op.dim(x),))
        return op, [(x, floats(rng, x)), (u, floats(rng, u))]


@register
@dataclass(frozen=True)
class SpectralNormTraining(SpectralNorm):
    """(`spectral_norm` of x, w): the new u, one step of power iteration further."""

    name: ClassVar[str] = "spectral_norm_training"
    spelled: ClassVar[bool] = False
    kept: ClassVar[int] = 1

    def infer(self, *inputs: TensorType) -> Any:
        self.dim(inputs[0])
        return inputs

    def reference(self, at: At, *arrays: np.ndarray) -> Any:
        return self.iteration(*arrays)

    def decompose(self, b: Builder, *values: Value) -> Any:
        return self.iterate(b, *values)
