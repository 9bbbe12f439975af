"""Convolutions of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..ir import Builder, Init, Value
from ..size import divide
from ..types import Dim, TensorType, TypeMismatch, promote
from .broadcast import renamed
from .contract import At, Cost, Op, ParameterDecl, register
from .einsum import Einsum
from .elementwise import Add
from .shape import Rearrange
from .windows import Windowed


@register
@dataclass(frozen=True)
class Conv2d(Windowed):
    """y[.., h, w, channels] = sum over the cells (i, j) of window (h, w) and over c of x's c at (i, j) weight[i, j, c,
    channels] (+ bias[channels]): a cross-correlation, the kernel is not mirrored.

    `channels` is the result's last dim; `size`, `stride`, `padding` and `dilation` are those of windows: "same" pads by
    (size - 1) // 2 before and size // 2 after. With `groups` both sides' channels are in so many equal parts (C3: they
    divide both), and a part of y sees only its part of x: weight [rows, columns, channels of x / groups, channels].
    Weights start as normal(0, 1 / sqrt(fan in)), biases as zeros.
    """

    name: ClassVar[str] = "conv2d"
    channels: Dim
    size: tuple[int, ...]
    stride: tuple[int, ...] = (1,)
    padding: str | tuple[int, ...] = "same"
    dilation: tuple[int, ...] = (1,)
    groups: int = 1
    bias: bool = False

    def part(self, channels: Dim) -> Dim:
        """One of the groups of some channels. Raises: TypeMismatch (C3)."""
        if self.groups == 1:
            return channels
        part = divide(channels.size, self.groups) if self.groups > 0 else None
        if part is None:
            raise TypeMismatch(
                f"`{channels}` has no {self.groups} equal parts", code="PF0325",
                help="`groups` must divide the channels of both sides",
            )  # fmt: skip
        return Dim(None, part)

    def parameters(self, *inputs: TensorType) -> Mapping[str, ParameterDecl]:
        self.cells(inputs[0])
        taps, own = (Dim(None, a.taps) for a in self.geometry()), self.part(inputs[0].dims[-1])
        self.part(self.channels)
        # A dim is unique within a tensor: in a square weight the result's side loses its name.
        out = Dim(None, self.channels.size) if own.name == self.channels.name else self.channels
        found = {"weight": ParameterDecl((*taps, own, out), Init("fan_in", (3.0,)))}
        if self.bias:
            found["bias"] = ParameterDecl((self.channels,), Init("zeros"))
        return found

    def infer(self, *inputs: TensorType) -> TensorType:
        x = inputs[0]
        return TensorType(promote(t.dtype for t in inputs), (*x.dims[:-3], *self.cells(x), self.channels))

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        x, weight, *bias = arrays
        parts = np.split(self.look(x), self.groups, -1), np.split(weight, self.groups, -1)
        y = np.concatenate([np.tensordot(p, w, 3) for p, w in zip(*parts)], -1)
        return y + bias[0] if bias else y

    def decompose(self, b: Builder, *values: Value) -> Any:
        x, weight, *bias = values
        windows, dims = self.windows(b, x), self.infer(*(v.type for v in values)).dims
        lead = "abcdefghijklmnopq"[: len(dims) - 1]
        if self.groups == 1:
            y = b.emit(Einsum(f"{lead}xyz,xyzn->{lead}n", dims), windows, weight)
        else:
            group = Dim("group'", self.groups)
            names = " ".join(lead)
            windows = b.emit(Rearrange(f"{names} x y (g z) -> {names} x y g z", (Dim("g", group.size),)), windows)
            weight = b.emit(Rearrange("x y z (g n) -> x y z g n", (Dim("g", group.size),)), weight)
            apart = (*dims[:-1], group, self.part(self.channels))
            y = b.emit(Einsum(f"{lead}xyGz,xyzGn->{lead}Gn", apart), windows, weight)
            y = renamed(b, b.emit(Rearrange(f"{names} g n -> {names} (g n)"), y), dims)
        return b.emit(Add(), y, bias[0]) if bias else y

    def mistakes(self, *inputs: TensorType) -> Mapping[str, Op | Callable[..., Value]]:
        found: dict[str, Op | Callable[..., Value]] = {}
        rows, columns = self.geometry()
        if rows.taps == columns.taps > 1:
            found["rows and columns of the kernel exchanged"] = lambda b, x, weight, *bias: b.emit(
                self, x, renamed(b, b.emit(Rearrange("i j c n -> j i c n"), weight), weight.type.dims), *bias
            )
        if self.padding == "same" and rows.stride == columns.stride == 2 and rows.reach == columns.reach == 3:
            found["TensorFlow's padding instead of torch's"] = replace(self, padding=(0, 1))
        return found

    def cost(self, *inputs: TensorType) -> Cost:
        x, weight = inputs[:2]
        out = self.infer(*inputs)
        summed = weight.dims[0].size * weight.dims[1].size * weight.dims[2].size
        return Cost(2 * out.elements * summed, out.elements + sum((t.elements for t in inputs), 0))

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats

        groups = int(rng.choice([1, 1, 2]))
        attributes, x = cls.example(rng, groups * int(rng.integers(1, 4)))
        out = Dim(str(rng.choice(["d", "features"])), groups * int(rng.integers(1, 4)))
        op = cls(out, **attributes, groups=groups, bias=bool(rng.random() < 0.5))
        types = [x, *(TensorType(p.dtype, p.dims) for p in op.parameters(x).values())]
        return op, [(t, floats(rng, t)) for t in types]
