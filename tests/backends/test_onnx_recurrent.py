"""A recurrent model's step form on ONNX against the reference: prompts, chunks, padded batches, states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from planform.backends import reference
from planform.backends.onnx import Session, difference, lower
from planform.compiler.ir import Graph
from planform.compiler.passes.last import last_only
from planform.compiler.passes.pipeline import optimise
from planform.compiler.passes.unroll import unroll

from .onnx_models import VOCAB, WINDOW, griffin, tokens, weights
from .test_onnx_runtime import optimised

TIME = 3 * WINDOW + 5
TOLERANCE = 2e-5


def expected(graph: Graph, ids: np.ndarray) -> np.ndarray:
    return reference.run(graph, weights(graph), {"tokens": ids})["logits"]


def exported(graph: Graph, last: bool = False) -> Graph:
    """The form that is exported."""
    form = unroll(optimise(graph, "onnx", "step"))
    return last_only(form) if last else form


def session(graph: Graph, last: bool = False) -> Session:
    made = lower(exported(graph, last), weights(graph).__getitem__, max_positions=64)
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


def test_what_runs_is_what_was_written(tmp_path: Path) -> None:
    """An exact histogram of the graph as the runtime runs it: two recurrent layers, one of attention, two recurrent."""
    graph = griffin()
    found = optimised(lower(exported(graph, last=True), weights(graph).__getitem__).model, tmp_path)
    assert found == {
        # each of the 4 recurrent layers, between two products and a third
        "Conv": 4, "ReorderInput": 4, "ReorderOutput": 4, "Squeeze": 4 + 1, "Concat": 4 + 1,
        "Div": 4, "Neg": 4, "Exp": 8, "Sigmoid": 4, "Softsign": 4, "Sqrt": 4, "If": 4,
        "Transpose": 8, "FusedMatMul": 8 + 1,  # two gates; the head
        "Reshape": 12,  # what the gates take and give
        "Mul": 4 * 5 + 5 + 3,  # input, normaliser twice, step, gate of the layer; feed-forward; sqrt(d), cap, angles
        "Add": 4 * 6 + 5 + 4,  # biases, the gate's 1, the reset, step; feed-forward parts; lengths and positions
        # the layer of attention
        "GroupQueryAttention": 1, "RotaryEmbedding": 2, "Cos": 1, "Sin": 1, "Split": 1,
        # the rest
        "MatMul": 4 * 3 + 2 + 5 * 3, "FastGelu": 4 + 5, "SkipSimplifiedLayerNormalization": 10,
        "RMSNormalization": 1, "Gather": 1, "GatherND": 4 + 4 + 3, "Tanh": 4 + 1, "Where": 4 + 1 + 1,
        "Cast": 6, "Shape": 2, "Unsqueeze": 17 + 4, "Range": 1, "Max": 1, "ReduceMax": 1, "Sub": 2, "Less": 1,
        "Equal": 1, "Greater": 1, "GreaterOrEqual": 1,
    }  # fmt: skip
