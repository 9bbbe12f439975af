"""Ops that know the sequence axis: positions of a running stream, the next entry, the last one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..types import Dim, TensorType, TypeMismatch
from .contract import At, Op, Reach, register


@register
@dataclass(frozen=True)
class Next(Op):
    """y[b, t] = x[b, t + 1] where that is in the same document, else -1 (no target). Integers only."""

    name: ClassVar[str] = "next"
    family: ClassVar[str] = "sequence"

    def reads(self) -> tuple[str, ...]:
        return ("document",)

    def infer(self, *inputs: TensorType) -> TensorType:
        x = inputs[0]
        if x.dtype not in ("i32", "i64") or x.rank != 2:
            raise TypeMismatch(f"`next` shifts integers [batch, time], its input is {x}", code="PF0301")
        return x

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        x, document = arrays
        out = np.full_like(x, -1)
        same = document[:, 1:] == document[:, :-1]
        out[:, :-1] = np.where(same, x[:, 1:], -1)
        return out

    def reach(self) -> Reach:
        return Reach(0, 1)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import documents, integers

        t = TensorType("i32", (Dim("batch", 2), Dim("time", int(rng.integers(1, 9)))))
        return cls(), [(t, integers(rng, t, 0, 9)), (t, documents(rng, *t.shape({}))[1])]


@register
@dataclass(frozen=True)
class Advance(Op):
    """position[b, t] = length[b] + t, int32[batch, time]: where a chunk of a stream stands."""

    name: ClassVar[str] = "advance"
    family: ClassVar[str] = "sequence"
    tensors: ClassVar[tuple[str, ...]] = ("length",)
    spelled: ClassVar[bool] = False
    time: Dim

    def infer(self, *inputs: TensorType) -> TensorType:
        return TensorType("i32", (*inputs[0].dims, self.time))

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        time = at.outputs[0].sizes[-1]
        assert isinstance(time, int)
        return arrays[0][:, None] + np.arange(time, dtype=np.int32)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import integers

        t = TensorType("i32", (Dim("batch", 3),))
        return cls(Dim("time", int(rng.integers(1, 5)))), [(t, integers(rng, t, 0, 100))]


@register
@dataclass(frozen=True)
class Last(Op):
    """y[b, 1, ..] = x[b, count[b] - 1, ..]: the last valid entry along axis 1 of a padded chunk."""

    name: ClassVar[str] = "last"
    family: ClassVar[str] = "sequence"
    tensors: ClassVar[tuple[str, ...]] = ("x", "count")
    spelled: ClassVar[bool] = False

    def infer(self, *inputs: TensorType) -> TensorType:
        x = inputs[0]
        return x.with_dims((x.dims[0], Dim(None, 1), *x.dims[2:]))

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        x, count = arrays
        return x[np.arange(len(x)), count - 1][:, None]

    def reach(self) -> Reach:
        return Reach(None, None)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats, integers

        x = TensorType("f32", (Dim("batch", 3), Dim("time", int(rng.integers(1, 5))), Dim("d", 2)))
        c = TensorType("i32", (Dim("batch", 3),))
        return cls(), [(x, floats(rng, x)), (c, integers(rng, c, 1, x.shape({})[1] + 1))]


@register
@dataclass(frozen=True)
class Iota(Op):
    """0, 1, 2 .. along the last of the given dims, the same in all the others; int32."""

    name: ClassVar[str] = "iota"
    family: ClassVar[str] = "sequence"
    tensors: ClassVar[tuple[str, ...]] = ()
    spelled: ClassVar[bool] = False
    dims: tuple[Dim, ...]

    def infer(self, *inputs: TensorType) -> TensorType:
        return TensorType("i32", self.dims)

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        shape = at.outputs[0].shape({})
        return np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        return cls((Dim("batch", 2), Dim("time", int(rng.integers(1, 6))))), []
