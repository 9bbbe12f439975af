"""Windows that slide over images [.., height, width, channels]: their geometry, and what lies in them.

Convolutions and pools (convolution.py, pooling.py) are products and reductions of these windows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from ..ir import Builder, Node, Value
from ..types import Dim, TensorType, TypeMismatch
from .contract import At, Cost, Gradients, Op, register

WINDOW = ("window row'", "window column'")  # no names of a spec


@dataclass(frozen=True)
class Axis:
    """One axis of the geometry: so many taps, so far apart, in windows `stride` apart, with cells padded."""

    taps: int
    stride: int
    dilation: int
    before: int
    after: int

    def count(self, cells: Any) -> Any:
        """How many windows there are along `cells`, a number or a symbolic size."""
        return (cells + self.before + self.after - self.reach) // self.stride + 1

    @property
    def reach(self) -> int:
        """From a window's first cell to behind its last one."""
        return (self.taps - 1) * self.dilation + 1

    def slice(self, tap: int, windows: int) -> slice:
        """The cells that a tap meets, along the padded axis."""
        first = tap * self.dilation
        return slice(first, first + (windows - 1) * self.stride + 1, self.stride)


class Windowed(Op):
    """Base of all ops with windows. `size`, `stride` and `dilation` are one number, or that of rows and of columns.

    size      cells in a window
    stride    from one window to the next
    padding   "same": windows of ceil(cells / stride), for which (size - 1) // 2 cells are added before the first one
              and size // 2 after the last. For odd sizes that is the same on both sides, as in torch; TensorFlow's SAME
              is not, where windows are more than one apart: that is [0, 1] for windows of 3, 2 apart, on an even number
              of cells. "valid": none. Or a number for both sides, or [before, after]
    dilation  from one cell of a window to the next

    Constraints: x is float[.., height, width, channels] (C1); a window fits into the padded image (C2).
    """

    mixes_last: ClassVar[int] = 3
    family: ClassVar[str] = "convolution"
    size: tuple[int, ...]
    stride: tuple[int, ...] | None
    padding: str | tuple[int, ...]

    def geometry(self) -> tuple[Axis, Axis]:
        """That of rows and of columns. Raises: TypeMismatch."""
        found = []
        for size, stride, dilation in zip(*map(self._pair, ("size", "stride", "dilation"))):
            reach = (size - 1) * dilation + 1
            match self.padding:
                case "same":
                    before, after = (reach - 1) // 2, reach // 2
                case "valid":
                    before, after = 0, 0
                case (int(before), int(after)) if min(before, after) >= 0:
                    pass
                case (int(before),) if before >= 0:
                    after = before
                case other:
                    raise TypeMismatch(
                        f"`{self.name}` can't pad by {list(other) if isinstance(other, tuple) else repr(other)}",
                        code="PF0324", help='"same", "valid", a number of cells, or [before, after]',
                    )  # fmt: skip
            found.append(Axis(size, stride, dilation, before, after))
        return found[0], found[1]

    def _pair(self, attribute: str) -> tuple[int, ...]:
        given: tuple[int, ...] = getattr(self, attribute, (1,))
        if len(given) not in (1, 2) or min(given) < 1:
            raise TypeMismatch(
                f"`{attribute}` of `{self.name}` is {list(given)}", code="PF0324",
                help="a number from 1 on, or two: that of rows and of columns",
            )  # fmt: skip
        return given if len(given) == 2 else given * 2

    def cells(self, x: TensorType) -> tuple[Dim, Dim]:
        """The dims [height, width] of the windows on x. Raises: TypeMismatch (C1, C2)."""
        if x.rank < 3 or not x.is_float:
            raise TypeMismatch(f"`{self.name}` needs float[.., height, width, channels], its input is {x}")
        found = []
        for axis, d in zip(self.geometry(), x.dims[-3:-1]):
            if isinstance(d.size, int) and d.size + axis.before + axis.after < axis.reach:
                raise TypeMismatch(
                    f"a window of {axis.reach} cells doesn't fit into `{d}` of {x}", code="PF0312",
                    help="a smaller window, or more padding",
                )  # fmt: skip
            found.append(Dim(d.name, axis.count(d.size)))
        return found[0], found[1]

    def windows(self, b: Builder, x: Value, fill: float = 0.0) -> Value:
        """The cells in each window: [.., height, width, rows, columns, channels]."""
        made: Value = b.emit(Windows(self.size, self._pair("stride"), self.padding, self._pair("dilation"), fill), x)
        return made

    def look(self, x: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """`windows` of an array."""
        lead = [(0, 0)] * (x.ndim - 3)
        rows, columns = self.geometry()
        x = np.pad(x, [*lead, *((a.before, a.after) for a in (rows, columns)), (0, 0)], constant_values=fill)
        view = np.lib.stride_tricks.sliding_window_view(x, (rows.reach, columns.reach), (-3, -2))  # type: ignore[call-overload]
        view = view[..., :: rows.stride, :: columns.stride, :, :: rows.dilation, :: columns.dilation]
        return np.moveaxis(view, -3, -1)

    @classmethod
    def example(cls, rng: np.random.Generator, channels: int | None = None) -> tuple[dict[str, Any], TensorType]:
        """(attributes, a type that they fit)."""
        size = tuple(int(n) for n in rng.integers(1, 4, int(rng.integers(1, 3))))
        padding = ["same", "valid", (0,), (0, int(min(size) > 1))][int(rng.integers(4))]
        found = {"size": size, "stride": (int(rng.integers(1, 4)),), "padding": padding}
        if "dilation" in {f.name for f in fields(cls)}:
            found["dilation"] = tuple(int(n) for n in rng.integers(1, 3, int(rng.integers(1, 3))))
        cells = (Dim("height", int(rng.integers(5, 8))), Dim("width", int(rng.integers(5, 8))))
        lead = ((), (Dim("batch", 2),), (Dim("batch", 2), Dim("frames", 2)))[int(rng.integers(3))]
        return found, TensorType("f32", (*lead, *cells, Dim("d", channels or int(rng.integers(1, 4)))))

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats

        attributes, x = cls.example(rng)
        return cls(**attributes), [(x, floats(rng, x))]


@register
@dataclass(frozen=True)
class Windows(Windowed):
    """The cells in each window of x [.., height, width, channels]: [.., height', width', rows, columns, channels].

    What is padded is `fill`.
    """

    name: ClassVar[str] = "windows"
    spelled: ClassVar[bool] = False
    size: tuple[int, ...]
    stride: tuple[int, ...] = (1,)
    padding: str | tuple[int, ...] = "same"
    dilation: tuple[int, ...] = (1,)
    fill: float = 0.0

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        taps = (Dim(name, a.taps) for name, a in zip(WINDOW, self.geometry()))
        return x.with_dims((*x.dims[:-3], *self.cells(x), *taps, x.dims[-1]))

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        return self.look(arrays[0], self.fill)

    def gradient(self, b: Builder, node: Node, above: Value) -> Gradients | None:
        own = (self.size, self.stride, self.padding, self.dilation)
        return [lambda: b.emit(OverlapAdd(*own, node.inputs[0].type.dims[-3:-1]), above)]

    def cost(self, *inputs: TensorType) -> Cost:
        return Cost(0, inputs[0].elements + self.infer(*inputs).elements)


@register
@dataclass(frozen=True)
class OverlapAdd(Windowed):
    """Windows x [.., height', width', rows, columns, channels] added up where they lie in an image of `image`
    [height, width], what lies in the padding left out: [.., height, width, channels]. The gradient of `windows`."""

    name: ClassVar[str] = "overlap_add"
    mixes_last: ClassVar[int] = 5
    spelled: ClassVar[bool] = False
    size: tuple[int, ...]
    stride: tuple[int, ...] = (1,)
    padding: str | tuple[int, ...] = "same"
    dilation: tuple[int, ...] = (1,)
    image: tuple[Dim, ...] = ()

    def infer(self, *inputs: TensorType) -> TensorType:
        (x,) = inputs
        made = x.with_dims((*x.dims[:-5], *self.image, x.dims[-1])) if x.rank >= 5 else x
        if x.rank < 5 or Windows(self.size, self.stride, self.padding, self.dilation).infer(made) != x:
            raise TypeMismatch(f"`overlap_add`: {x} are no windows on [{', '.join(map(str, self.image))}]")
        return made

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        (x,), shape = arrays, at.outputs[0].shape({})
        rows, columns = self.geometry()
        padded = [n + a.before + a.after for n, a in zip(shape[-3:-1], (rows, columns))]
        y = np.zeros((*shape[:-3], *padded, shape[-1]))
        for i in range(rows.taps):
            for j in range(columns.taps):
                y[..., rows.slice(i, x.shape[-5]), columns.slice(j, x.shape[-4]), :] += x[..., i, j, :]
        return y[..., rows.before : rows.before + shape[-3], columns.before : columns.before + shape[-2], :]

    def gradient(self, b: Builder, node: Node, above: Value) -> Gradients | None:
        return [lambda: self.windows(b, above)]

    def cost(self, *inputs: TensorType) -> Cost:
        return Cost(inputs[0].elements, inputs[0].elements + self.infer(*inputs).elements)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats

        attributes, image = cls.example(rng)
        x = Windows(**attributes).infer(image)
        return cls(**attributes, image=image.dims[-3:-1]), [(x, floats(rng, x))]
