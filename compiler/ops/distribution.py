"""Distributions over classes or over the atoms of a grid, as functions of each entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..ir import Builder, Value
from ..types import Dim, TensorType, TypeMismatch
from .broadcast import Broadcast
from .contract import At, Cost, Op, register
from .elementwise import number
from .norm import _SameShape
from .reduce import Max, Sum
from .terms import Term


@register
@dataclass(frozen=True)
class LogSoftmax(_SameShape):
    """x - log(sum of exp(x)) over the last dim; in float32 or wider."""

    name: ClassVar[str] = "log_softmax"
    family: ClassVar[str] = "norm"
    mixes_last: ClassVar[int] = 1

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        x = arrays[0] - np.max(arrays[0], -1, keepdims=True)
        return x - np.log(np.sum(np.exp(x), -1, keepdims=True))

    def decompose(self, b: Builder, *values: Value) -> Value:
        over = values[0].type.dims[-1:]
        x = Term(b, values[0]) - Term(b, b.emit(Max(over), values[0]))
        total = Term(b, b.emit(Sum(over), x.of("exp").value))
        return (x - total.of("log")).value


@register
@dataclass(frozen=True)
class Project(Op):
    """What a return is worth a step earlier, on the same atoms z (`support`): the mass of atom j goes to
    t_j = reward + discount * z_j, brought between the first and the last atom, and from there to its neighbours:

        y[.., i] = sum over j of probabilities[.., j] * max(0, 1 - |t_j - z_i| / step)

    probabilities float[.., atoms], support float[atoms], reward and discount float[..]. The triangles add up to one
    everywhere, on atoms and beyond the ends as between them, so that no mass is lost or made. No gradient flows to
    the support. C1: its atoms rise evenly.
    Source: Bellemare, Dabney and Munos, arXiv:1707.06887, equation 7.
    """

    name: ClassVar[str] = "project"
    family: ClassVar[str] = "loss"
    tensors: ClassVar[tuple[str, ...]] = ("probabilities", "support", "reward", "discount")

    def infer(self, *inputs: TensorType) -> TensorType:
        p, z, *rest = inputs
        if not all(t.is_float for t in inputs) or not p.rank or z.dims != p.dims[-1:]:
            atoms = p.dims[-1] if p.rank else "atoms"
            raise TypeMismatch(f"`project` of probabilities {p} needs a support float[{atoms}], not {z}")
        if any(t.dims != p.dims[:-1] for t in rest):
            want = ", ".join(map(str, p.dims[:-1]))
            raise TypeMismatch(f"`project` of probabilities {p} needs a reward and a discount float[{want}], "
                               f"not {rest[0]} and {rest[1]}")  # fmt: skip
        if not isinstance(p.sizes[-1], int) or p.sizes[-1] < 2:
            raise TypeMismatch(f"`project` needs two or more atoms, not {p.sizes[-1]}")
        return p

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        p, z, reward, discount = arrays
        step = (z[-1] - z[0]) / (len(z) - 1)
        target = np.clip(reward[..., None] + discount[..., None] * z, z[0], z[-1])
        away = np.abs(target[..., None, :] - z[:, None])
        return np.sum(p[..., None, :] * np.maximum(1 - away / step, 0), -1)

    def decompose(self, b: Builder, *values: Value) -> Value:
        p, z, reward, discount = values
        z = Term(b, z).of("stop").value
        rank, n = p.type.rank, int(p.type.dims[-1].size)  # type: ignore[arg-type]
        source = Dim(None, n)
        pairs = (*p.type.dims, source)  # [.., atom i, atom j]
        each = tuple(range(rank - 1))

        def along(dims: tuple[Dim, ...], at: tuple[int, ...], x: Value) -> Term:
            return Term(b, b.emit(Broadcast(dims, at), x))

        first, last = -Term(b, b.emit(Max(), (-Term(b, z)).value)), Term(b, b.emit(Max(), z))
        moved = along(p.type.dims, each, reward) + along(p.type.dims, each, discount) * along(
            p.type.dims, (rank - 1,), z
        )
        target = moved.of("maximum", first).of("minimum", last)
        away = (along(pairs, (*each, rank), target.value) - along(pairs, (rank - 1,), z)).of("abs")
        rate = Term(b, number(b, float(n - 1))) / (last - first)
        weight = (1.0 - away * rate).of("maximum", 0.0)
        return b.emit(Sum((source,)), (along(pairs, (*each, rank), p) * weight).value)  # type: ignore[no-any-return]

    def cost(self, *inputs: TensorType) -> Cost:
        p, z, *_ = inputs
        return Cost(6 * p.elements * z.elements, 3 * p.elements)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats

        n = int(rng.integers(2, 7))
        x = TensorType("f32", (Dim("batch", 3), Dim(None, n), Dim("atoms", n))[int(rng.integers(0, 3)) :])
        p, each = np.exp(floats(rng, x)), x.with_dims(x.dims[:-1])
        atoms = np.linspace(-rng.uniform(0.5, 3), rng.uniform(0.5, 3), n)
        given = [(x, p / p.sum(-1, keepdims=True)), (x.with_dims(x.dims[-1:]), atoms), (each, 2 * floats(rng, each))]
        return cls(), [*given, (each, rng.random(each.shape({})))]
