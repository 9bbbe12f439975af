"""Random examples for the registry's property tests."""

from __future__ import annotations

import numpy as np

from ..types import Dim, TensorType

NAMES = ["batch", "time", "d", "rows", "features"]


def random_dims(rng: np.random.Generator, most: int, least: int = 1) -> tuple[Dim, ...]:
    """Between `least` and `most` named dims of sizes 1 to 5."""
    n = int(rng.integers(least, most + 1))
    names = [NAMES[i] for i in rng.permutation(len(NAMES))[:n]]
    return tuple(Dim(name, int(rng.integers(1, 6))) for name in names)


def floats(rng: np.random.Generator, t: TensorType, low: float = -3.0, high: float = 3.0) -> np.ndarray:
    return rng.uniform(low, high, t.shape({}))


def integers(rng: np.random.Generator, t: TensorType, low: int, high: int) -> np.ndarray:
    return rng.integers(low, high, t.shape({})).astype(t.numpy)


def documents(rng: np.random.Generator, batch: int, time: int) -> tuple[np.ndarray, np.ndarray]:
    """(position, document), int32[batch, time]: rows cut at random into documents."""
    starts = rng.random((batch, time)) < 0.25
    starts[:, 0] = True
    document = np.cumsum(starts, 1) - 1
    index = np.broadcast_to(np.arange(time), (batch, time))
    first = np.maximum.accumulate(np.where(starts, index, 0), 1)
    return (index - first).astype(np.int32), document.astype(np.int32)
