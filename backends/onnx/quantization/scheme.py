"""What is quantised, and how: the choices, without the numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from .rounding import INT4, INT7, INT8, Levels, Rounded, rounded

KINDS: Mapping[str, Levels] = MappingProxyType({"int4": INT4, "w8": INT8, "int8": INT7})
"""Kinds of weights. `int4` and `w8` have 4 or 8 bits and a scale a block; the kernel rounds what they are multiplied
by to 8 bits, block by block. `int8` has 8 bits and a scale a column; what it is multiplied by is rounded with one scale
for all of it."""

CACHE_WIDTH = 16
"""Heads of an 8 bit cache have a multiple of so many entries."""

LEAST = 1 << 10
"""Entries below which a matrix stays float32: it would cost more to look up than to read."""


@dataclass(frozen=True)
class Scheme:
    """How one matrix is stored: a kind of `KINDS`, with the entries of a block (0: one scale a column)."""

    kind: str
    block: int = 0

    @property
    def levels(self) -> Levels:
        return KINDS[self.kind]

    @property
    def bits(self) -> int:
        return 4 if self.kind == "int4" else 8

    def bytes(self, rows: int, columns: int) -> int:
        """Of a matrix with `rows` entries to sum over and `columns` results."""
        blocks = -(-rows // self.block) if self.block else 1
        width = blocks * self.block if self.block else rows
        return columns * (width * self.bits // 8 + 4 * blocks)

    def table(self) -> Scheme:
        """The same for a matrix whose rows are looked up as well: only blocks can be read a row at a time."""
        return self if self.block else Scheme("w8", 128)


@dataclass(frozen=True)
class Range:
    """The values of an image, which 8 bits are spread over; 0 is one of those that they tell exactly."""

    low: float
    high: float

    @property
    def scale(self) -> np.float32:
        return np.float32(max(max(self.high, 0.0) - min(self.low, 0.0), 1e-6) / 255)

    @property
    def zero(self) -> int:
        return int(np.clip(np.rint(-min(self.low, 0.0) / self.scale), 0, 255))


Round = Callable[[str, Callable[[], np.ndarray], Scheme], Rounded]
"""(name of a matrix, its array [out, in], scheme) -> the rounded matrix."""


def nearest(name: str, matrix: Callable[[], np.ndarray], scheme: Scheme) -> Rounded:
    """Each weight rounded alone, under the best scale for its block."""
    w = matrix()
    return rounded(w, scheme.levels, scheme.block or w.shape[1])


@dataclass(frozen=True)
class Quantization:
    """Which matrices are stored how.

    scheme  of every matrix of at least `least` entries
    chosen  by the matrix's name, what holds instead; None: float32
    round   makes the numbers, when the file is written
    images  ranges of images by the name of the value, which with their kernels take 8 bits; the others stay float32
    cache   scales float32[heads, width] of an 8 bit cache by the path of the state; other states stay as they are
    told    what the contract is to say of it
    """

    scheme: Scheme | None
    chosen: Mapping[str, Scheme | None] = field(default_factory=dict)
    round: Round = nearest
    cache: Mapping[str, np.ndarray] = field(default_factory=dict)
    images: Mapping[str, Range] = field(default_factory=dict)
    least: int = LEAST
    told: Mapping[str, Any] = field(default_factory=dict)

    def of(self, name: str, rows: int, columns: int) -> Scheme | None:
        """The scheme of a matrix; None: float32."""
        if name in self.chosen:
            return self.chosen[name]
        return self.scheme if rows * columns >= self.least else None


PLAIN = Quantization(None)
