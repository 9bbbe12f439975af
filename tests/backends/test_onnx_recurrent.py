"""A recurrent model's step form on ONNX against the reference: prompts, chunks, padded batches, states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from planform.backends import reference
from planform.backends.onnx import Session, difference, lower
from planform.compiler.ir import Graph

from .onnx_models import VOCAB, WINDOW, fused, griffin, step, tokens, weights

TIME = 3 * WINDOW + 5
TOLERANCE = 2e-5


def expected(graph: Graph, ids: np.ndarray) -> np.ndarray:
    return reference.run(graph, weights(graph), {"tokens": ids})["logits"]


def session(graph: Graph, last: bool = False) -> Session:
    made = lower(fused(step(graph, last=last)), weights(graph).__getitem__, max_positions=64)
    return Session(made, threads=1, spin=False)


@pytest.mark.parametrize("lru", [48, 40], ids=["channels in blocks", "channels left over"])
@pytest.mark.parametrize("chunk", [TIME, 1, 2, 7, WINDOW + 1])
def test_chunks_of_every_size_give_the_logits_of_the_whole(chunk: int, lru: int) -> None:
    graph = griffin(lru=lru)
    ids = tokens(2, TIME)
    s = session(graph)
    s.reset(2, 64)
    got = [s.advance(ids[:, i : i + chunk]) for i in range(0, TIME, chunk)]
    assert difference(np.concatenate(got, 1), expected(graph, ids)) < TOLERANCE


COUNTS = ([20, 3, 11], [1, 1, 1], [0, 9, 4], [1, 0, 1], [5, 5, 5], [0, 2, 0], [1, 1, 1])


def test_rows_of_different_lengths() -> None:
    """Padded prompts, chunks shorter than the convolution, rows that pause: each row is what it would be alone."""
    graph = griffin()
    s = session(graph, last=True)
    ids = tokens(3, 64)
    s.reset(3, 64)
    length = np.zeros(3, int)
    for counts in COUNTS:
        got = s.advance(padded(ids, length, counts), np.array(counts))
        length += counts
        for row in np.nonzero(counts)[0]:
            want = expected(graph, ids[row : row + 1, : length[row]])[0]
            assert difference(got[row, :1], want[-1:]) < TOLERANCE, (counts, row)


def padded(ids: np.ndarray, length: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """The next entries of each row, with others behind them that must not count."""
    chunk = np.random.default_rng(0).integers(0, VOCAB, (len(ids), max(counts))).astype(np.int32)
    for row, n in enumerate(counts):
        chunk[row, :n] = ids[row, length[row] : length[row] + n]
    return chunk
