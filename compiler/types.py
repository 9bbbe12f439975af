"""Named dims and tensor types, and the one rule by which tensors broadcast: by name, never by position."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from .size import Size, evaluate, parse_size, substitute, symbol

DTYPES: dict[str, Any] = {
    "f64": np.float64,
    "f32": np.float32,
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "i64": np.int64,
    "i32": np.int32,
    "i8": np.int8,
    "u8": np.uint8,
    "bool": np.bool_,
}
WORDS = {
    "float": "f32",
    "int": "i32",
    "float32": "f32",
    "float64": "f64",
    "bfloat16": "bf16",
    "float16": "f16",
    "int32": "i32",
    "int64": "i64",
    "int8": "i8",
    "uint8": "u8",
}


class TypeMismatch(Exception):
    """A rule of an op is broken. The elaborator adds the place and the path of blocks.

    `code` is the stable diagnostic code, `help` what to do about it.
    """

    def __init__(self, message: str, *, code: str = "PF0310", help: str | None = None, label: str = "") -> None:
        super().__init__(message)
        self.code, self.help, self.label = code, help, label


@dataclass(frozen=True)
class Dim:
    """One axis: a name (None for an unnamed size) and a size."""

    name: str | None
    size: Size

    def __str__(self) -> str:
        if self.name is None:  # brackets tell a size without a name from the dim of that name
            return f"({self.size})" if str(self.size).isidentifier() else str(self.size)
        return self.name if self.size == symbol(self.name) else f"{self.name}={self.size}"

    @staticmethod
    def parse(text: str) -> Dim:
        name, eq, size = text.partition("=")
        if eq:
            return Dim(name.strip(), parse_size(size))
        value = parse_size(text)
        return Dim(text.strip(), value) if value == _symbol_or_none(text.strip()) else Dim(None, value)


def _symbol_or_none(text: str) -> Size | None:
    return symbol(text) if text.isidentifier() else None


@dataclass(frozen=True)
class TensorType:
    """dtype and dims. Named dims are unique within a tensor."""

    dtype: str
    dims: tuple[Dim, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for d in self.dims:
            if d.name is not None and d.name in seen:
                raise TypeMismatch(
                    f"dim `{d.name}` occurs twice in [{', '.join(map(str, self.dims))}]",
                    code="PF0311",
                    help="name the result of one of the two differently: a dim is unique within a tensor",
                )
            if d.name is not None:
                seen.add(d.name)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.dims))}]"

    @staticmethod
    def parse(text: str) -> TensorType:
        dtype, _, rest = text.partition("[")
        inner = rest.rstrip().removesuffix("]")
        return TensorType(dtype.strip(), tuple(Dim.parse(p) for p in inner.split(",")) if inner.strip() else ())

    @property
    def rank(self) -> int:
        return len(self.dims)

    @property
    def sizes(self) -> tuple[Size, ...]:
        return tuple(d.size for d in self.dims)

    @property
    def names(self) -> tuple[str | None, ...]:
        return tuple(d.name for d in self.dims)

    @property
    def is_float(self) -> bool:
        return self.dtype in ("f64", "f32", "f16", "bf16")

    @property
    def elements(self) -> Size:
        n: Size = 1
        for d in self.dims:
            n = n * d.size
        return n

    @property
    def numpy(self) -> Any:
        return DTYPES[self.dtype]

    def axis(self, name: str) -> int | None:
        """The index of a named dim, or None."""
        return self.names.index(name) if name in self.names else None

    def with_dims(self, dims: Iterable[Dim]) -> TensorType:
        return TensorType(self.dtype, tuple(dims))

    def with_dtype(self, dtype: str) -> TensorType:
        return TensorType(dtype, self.dims)

    def without(self, axes: Iterable[int]) -> TensorType:
        gone = {a % self.rank for a in axes}
        return self.with_dims(d for i, d in enumerate(self.dims) if i not in gone)

    def shape(self, env: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(evaluate(s, env) for s in self.sizes)

    def bind(self, env: Mapping[str, Size]) -> TensorType:
        """The type with symbols replaced by sizes."""
        return self.with_dims(Dim(d.name, substitute(d.size, env)) for d in self.dims)


def scalar(dtype: str = "f32") -> TensorType:
    return TensorType(dtype, ())


_RANK = ["bool", "u8", "i8", "i32", "i64", "f16", "bf16", "f32", "f64"]


def promote(dtypes: Iterable[str]) -> str:
    """The widest of the dtypes, floats above integers above bool."""
    return max(dtypes, key=_RANK.index)


def broadcast(types: Sequence[TensorType]) -> tuple[Dim, ...]:
    """Dims of an elementwise result: those of the operand that has all the dims of the others.

    Named dims meet by name and must have equal sizes; unnamed dims meet in order, from the last one
    backwards, and must have equal sizes too. Two operands that each have a dim the other lacks don't
    broadcast: a residual of the wrong width must not become an outer sum.
    Raises: TypeMismatch where sizes differ or no operand has all the dims.
    """
    lead = max(types, key=lambda t: t.rank)
    unnamed = [d.size for d in lead.dims if d.name is None]
    for t in types:
        mine = [d.size for d in t.dims if d.name is None]
        if mine and mine != unnamed[len(unnamed) - len(mine) :]:
            raise TypeMismatch(f"unnamed sizes {mine} and {unnamed} differ: {t} and {lead}", code="PF0312")
        for d in t.dims:
            if d.name is None:
                continue
            axis = lead.axis(d.name)
            if axis is None:
                raise TypeMismatch(
                    f"{t} and {lead} don't broadcast: `{d.name}` is only in the first",
                    code="PF0317",
                    help="one of the two must have all the dims of the other",
                )
            if lead.dims[axis].size != d.size:
                raise TypeMismatch(
                    f"dim `{d.name}` is {d.size} in one operand and {lead.dims[axis].size} in the other", code="PF0312"
                )
    return lead.dims


def alignment(source: TensorType, target: Sequence[Dim]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How to lay `source` out for broadcasting against `target`: (permutation, axes to insert).

    Transposing by the permutation and then inserting unit axes at the given places of the result makes the
    source's dims stand where the target has them.
    """
    places: list[int] = []
    unnamed = [i for i, d in enumerate(target) if d.name is None]
    mine = [i for i, d in enumerate(source.dims) if d.name is None]
    slots = dict(zip(mine, unnamed[len(unnamed) - len(mine) :]))
    names = [d.name for d in target]
    for i, d in enumerate(source.dims):
        places.append(slots[i] if d.name is None else names.index(d.name))
    order = tuple(sorted(range(source.rank), key=lambda i: places[i]))
    taken = set(places)
    return order, tuple(i for i in range(len(target)) if i not in taken)


def align(array: Any, source: TensorType, target: Sequence[Dim]) -> Any:
    """`array` (NumPy or JAX) laid out for broadcasting against `target`."""
    order, inserted = alignment(source, target)
    if order != tuple(range(source.rank)):
        array = array.transpose(order)
    shape = list(array.shape)
    for i in inserted:
        shape.insert(i, 1)
    return array.reshape(shape) if inserted else array
