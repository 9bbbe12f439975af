"""What actors have seen: the newest transitions, drawn evenly or by priority, and how fast they may be drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import whole
from .transitions import Arrays


class Replay:
    """The newest `capacity` transitions.

    exponent  of priorities: 0 draws evenly, 1 in proportion to them (Schaul et al., arXiv:1511.05952, section 3.3)
    """

    def __init__(self, capacity: int, exponent: float = 0.0) -> None:
        self.capacity, self.exponent = capacity, exponent
        self.count = 0
        self._next = 0
        self._arrays: Arrays = {}
        self._tree = SumTree(capacity) if exponent else None
        self._most = 1.0

    def insert(self, rows: Mapping[str, np.ndarray]) -> None:
        """Adds rows [n, ..]; the oldest make room. New ones have the largest priority so far, so that each is seen."""
        n = len(next(iter(rows.values())))
        if not self._arrays:
            self._arrays = {k: np.empty((self.capacity, *a.shape[1:]), a.dtype) for k, a in rows.items()}
        at = (self._next + np.arange(n)) % self.capacity
        for name, array in rows.items():
            self._arrays[name][at] = array
        if self._tree:
            self._tree.set(at, np.full(n, self._most))
        self._next = (self._next + n) % self.capacity
        self.count = min(self.count + n, self.capacity)

    def draw(self, n: int, rng: np.random.Generator, correction: float = 1.0) -> tuple[np.ndarray, Arrays]:
        """(indices [n], rows [n, ..]), with replacement. By priority they have a `weight` each that takes back, to the
        power `correction`, how much oftener they are drawn, at most 1 (section 3.4)."""
        if self._tree is None:
            at = rng.integers(self.count, size=n)
            return at, {name: a[at] for name, a in self._arrays.items()}
        # One from each of n equal parts of the mass, as the paper has it.
        at = self._tree.find((np.arange(n) + rng.random(n)) * (self._tree.total / n))
        at = np.minimum(at, self.count - 1)
        weight = self._tree.values(at) ** -correction
        rows = {name: a[at] for name, a in self._arrays.items()}
        return at, {**rows, "weight": (weight / weight.max()).astype(np.float32)}

    def prioritise(self, at: np.ndarray, priorities: np.ndarray) -> None:
        """New priorities of drawn rows."""
        if self._tree:
            powers = (np.abs(priorities) + 1e-6) ** self.exponent
            self._most = max(self._most, float(powers.max()))
            self._tree.set(at, powers)

    def save(self, file: Path) -> None:
        """Everything but priorities, which are learned again. Raises: UserError."""
        order = (self._next - self.count + np.arange(self.count)) % self.capacity
        with whole(file) as f:
            np.savez(f, **{name: a[order] for name, a in self._arrays.items()})  # type: ignore[arg-type]


class SumTree:
    """Numbers >= 0 by index, and where a point on their sum falls."""

    def __init__(self, capacity: int) -> None:
        self._depth = max(capacity - 1, 1).bit_length()
        self._sums = np.zeros(2 << self._depth)  # node i has the children 2 i and 2 i + 1; the root is 1

    @property
    def total(self) -> float:
        return float(self._sums[1])

    def values(self, at: np.ndarray) -> np.ndarray:
        return self._sums[at + (1 << self._depth)]

    def set(self, at: np.ndarray, values: np.ndarray) -> None:
        node = at + (1 << self._depth)
        self._sums[node] = values
        for _ in range(self._depth):
            node = np.unique(node >> 1)
            self._sums[node] = self._sums[2 * node] + self._sums[2 * node + 1]

    def find(self, points: np.ndarray) -> np.ndarray:
        """The index that each point in [0, total) falls on."""
        node, points = np.ones(len(points), np.int64), points.copy()
        for _ in range(self._depth):
            left = self._sums[2 * node]
            right = points >= left
            points -= np.where(right, left, 0.0)
            node = 2 * node + right
        return node - (1 << self._depth)


@dataclass
class Pace:
    """Keeps how often each transition is drawn, on average, near `ratio`: neither actors nor the learner run ahead.

    first   transitions before the first draw
    slack   by how many draws the two may be apart either way
    """

    ratio: float
    first: int
    slack: float
    inserted: int = 0
    drawn: int = 0

    def may_draw(self, n: int) -> bool:
        return self.inserted >= self.first and self.drawn + n <= self._due() + self.slack

    def may_insert(self, n: int) -> bool:
        return self.inserted + n <= self.first or self._due() + n * self.ratio <= self.drawn + self.slack

    def _due(self) -> float:
        """Draws that there should have been, the first of them when the replay began to be drawn from."""
        return (self.inserted - self.first) * self.ratio
