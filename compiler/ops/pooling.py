"""Images made smaller and larger: the largest or the mean of a window, a cell repeated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, prod
from typing import Any, ClassVar

import numpy as np

from ..ir import Builder, Value
from ..types import Dim, TensorType, TypeMismatch
from .broadcast import Broadcast, filled, renamed
from .contract import At, Cost, Op, register
from .elementwise import Div
from .reduce import Max, Mean, Sum
from .shape import Rearrange
from .windows import WINDOW, Axis, Windowed


@dataclass(frozen=True)
class _Pool(Windowed):
    size: tuple[int, ...]
    stride: tuple[int, ...] | None = None
    padding: str | tuple[int, ...] = "same"

    def _pair(self, attribute: str) -> tuple[int, ...]:
        return super()._pair("size" if attribute == "stride" and self.stride is None else attribute)

    def geometry(self) -> tuple[Axis, Axis]:
        """Also raises: TypeMismatch where a window may hold nothing but padding (C3)."""
        found = super().geometry()
        if any(max(a.before, a.after) >= a.taps for a in found):
            raise TypeMismatch(
                f"a window of `{self.name}` may hold nothing but padding", code="PF0324",
                help="less padding, or larger windows",
            )  # fmt: skip
        return found

    def over(self) -> tuple[Dim, ...]:
        return tuple(Dim(name, a.taps) for name, a in zip(WINDOW, self.geometry()))

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        return x.with_dims((*x.dims[:-3], *self.cells(x), x.dims[-1]))

    def cost(self, *inputs: TensorType) -> Cost:
        out = self.infer(*inputs)
        return Cost(prod(d.size for d in self.over()) * out.elements, inputs[0].elements + out.elements)  # type: ignore[arg-type]


@register
@dataclass(frozen=True)
class MaxPool(_Pool):
    """The largest cell of each window of x [.., height, width, channels], each channel alone; padding never is.

    `size` and `padding` as in `conv2d`; windows are `stride` apart, side by side unless given. C3: no window is all
    padding. To which of equal cells a gradient flows is the backend's choice.
    """

    name: ClassVar[str] = "max_pool"

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.look(arrays[0], -inf).max((-3, -2))
        return found

    def decompose(self, b: Builder, *values: Value) -> Any:
        return b.emit(Max(self.over()), self.windows(b, values[0], -inf))

    def mistakes(self, *inputs: TensorType) -> Mapping[str, Op | Callable[..., Value]]:
        return {"the mean instead of the largest": AvgPool(self.size, self.stride, self.padding)}


@register
@dataclass(frozen=True)
class AvgPool(_Pool):
    """The mean over each window of x [.., height, width, channels], each channel alone; padding doesn't count.

    `size` and `padding` as in `conv2d`; windows are `stride` apart, side by side unless given. C3: no window is all
    padding.
    """

    name: ClassVar[str] = "avg_pool"

    @property
    def padded(self) -> bool:
        return any(a.before or a.after for a in self.geometry())

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.nanmean(self.look(arrays[0], np.nan), (-3, -2))
        return found

    def decompose(self, b: Builder, *values: Value) -> Any:
        (x,) = values
        if not self.padded:
            return b.emit(Mean(self.over()), self.windows(b, x))
        total = b.emit(Sum(self.over()), self.windows(b, x))
        ones = filled(b, 1.0, TensorType("f32", (*x.type.dims[-3:-1], Dim(None, 1))))
        count = b.emit(Sum((*self.over(), Dim(None, 1))), self.windows(b, ones))
        rank, dims = x.type.rank, total.type.dims
        return b.emit(Div(), total, b.emit(Broadcast(dims, (rank - 3, rank - 2)), count))

    def mistakes(self, *inputs: TensorType) -> Mapping[str, Op | Callable[..., Value]]:
        return {"the largest instead of the mean": MaxPool(self.size, self.stride, self.padding)}


@register
@dataclass(frozen=True)
class Upsample(Op):
    """Each cell of x [.., height, width, channels] `factor` times along height and width (its nearest neighbours)."""

    name: ClassVar[str] = "upsample"
    family: ClassVar[str] = "convolution"
    mixes_last: ClassVar[int] = 3
    factor: int

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        if x.rank < 3 or self.factor < 1:
            raise TypeMismatch(f"`upsample` by {self.factor} needs [.., height, width, channels], its input is {x}")
        return x.with_dims((*x.dims[:-3], *(Dim(d.name, d.size * self.factor) for d in x.dims[-3:-1]), x.dims[-1]))

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        return arrays[0].repeat(self.factor, -3).repeat(self.factor, -2)

    def decompose(self, b: Builder, *values: Value) -> Any:
        (x,) = values
        *lead, height, width, channels = x.type.dims
        n, copies = len(lead), Dim(None, self.factor)
        dims = (*lead, height, copies, width, copies, channels)
        y = b.emit(Broadcast(dims, (*range(n), n, n + 2, n + 4)), x)
        names = " ".join(f"d{i}" for i in range(n))
        y = b.emit(Rearrange(f"{names} h r w s c -> {names} (h r) (w s) c"), y)
        return renamed(b, y, self.infer(x.type).dims)

    def cost(self, *inputs: TensorType) -> Cost:
        return Cost(0, inputs[0].elements + self.infer(*inputs).elements)

    def mistakes(self, *inputs: TensorType) -> Mapping[str, Op | Callable[..., Value]]:
        def tiled(b: Builder, x: Value) -> Value:
            """The image beside itself instead of cells beside themselves."""
            *lead, height, width, channels = x.type.dims
            n, copies = len(lead), Dim(None, self.factor)
            y = b.emit(Broadcast((*lead, copies, height, copies, width, channels), (*range(n), n + 1, n + 3, n + 4)), x)
            names = " ".join(f"d{i}" for i in range(n))
            y = b.emit(Rearrange(f"{names} r h s w c -> {names} (r h) (s w) c"), y)
            return renamed(b, y, self.infer(x.type).dims)

        return {"tiled instead of repeated": tiled} if self.factor > 1 else {}

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats

        _, x = Windowed.example(rng)
        return cls(int(rng.integers(1, 4))), [(x, floats(rng, x))]
