"""The two forms of a model on ONNX against the reference: whole sequences, prefill, chunks, padded batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from planform.backends import reference
from planform.backends.onnx import Session, difference, intermediates, lower, run
from planform.backends.onnx.emitter import WINDOW_SLACK
from planform.backends.onnx.rules import capped
from planform.backends.onnx.rules.capped import CAPPED
from planform.compiler.elaborate import elaborate
from planform.compiler.ir import Graph
from planform.compiler.passes.stateful import stateful
from planform.spec import load_text
from planform.spec.find import SHIPPED

from ..compiler.graphs import decoder, parameters
from .onnx_models import DIMS, WINDOW, decoding, fused, gemma, step, tokens, weights

TIME = 3 * WINDOW + 5
TOLERANCE = 2e-5


def expected(graph: Graph, ids: np.ndarray) -> np.ndarray:
    """Logits of whole rows, by the reference."""
    return reference.run(graph, weights(graph), {"tokens": ids})["logits"]


def session(graph: Graph, **options: Any) -> Session:
    return Session(lower(graph, weights(graph).__getitem__, max_positions=64, **options), threads=1, spin=False)


def feed(s: Session, ids: np.ndarray, chunks: Sequence[int]) -> np.ndarray:
    """Logits of all entries, fed in chunks of these sizes."""
    s.reset(len(ids), 64)
    cuts = np.cumsum([0, *chunks])
    assert cuts[-1] == ids.shape[1]
    return np.concatenate([s.advance(ids[:, a:b]) for a, b in zip(cuts, cuts[1:])], 1)


def fed(
    s: Session, ids: np.ndarray, chunks: Sequence[Sequence[int]]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(entries before, entries now, outputs) of chunks in which rows have so many entries, the rest being padding."""
    s.reset(*ids.shape)
    length = np.zeros(len(ids), int)
    for counts in chunks:
        chunk = np.zeros((len(ids), max(counts)), np.int32)
        for row, n in enumerate(counts):
            chunk[row, :n] = ids[row, length[row] : length[row] + n]
        got = s.advance(chunk, np.array(counts))
        assert np.isfinite(got).all(), "padding is arbitrary, but numbers"
        yield length.copy(), np.array(counts), got
        length += counts


def in_chunks(n: int) -> list[int]:
    return [n] * (TIME // n) + ([TIME % n] if TIME % n else [])


def test_whole_sequence() -> None:
    graph = gemma()
    ids = tokens(2, TIME)
    place = np.tile(np.arange(TIME), (2, 1))
    lowered = lower(graph, weights(graph).__getitem__)
    onnx.checker.check_model(ir.to_proto(lowered.model), full_check=True)
    got = run(lowered, {"tokens": ids, "position": place, "document": 0 * place})["logits"]
    assert difference(got, expected(graph, ids)) < TOLERANCE


def test_documents_in_a_row_do_not_see_each_other() -> None:
    graph = gemma()
    ids = tokens(1, TIME)
    document = (np.arange(TIME) >= 11).astype(np.int32)[None]
    position = np.where(document, np.arange(TIME) - 11, np.arange(TIME)).astype(np.int32)
    inputs = {"tokens": ids, "position": position, "document": document}
    want = reference.run(graph, weights(graph), inputs)["logits"]
    got = run(lower(graph, weights(graph).__getitem__), inputs)["logits"]
    assert difference(got, want) < TOLERANCE
    assert difference(got[:, 11:], expected(graph, ids[:, 11:])) < TOLERANCE


@pytest.mark.parametrize("prepare", [lambda g: g, fused], ids=["plain", "fused"])
@pytest.mark.parametrize("chunk", [TIME, 1, 3, 7, WINDOW, 2 * WINDOW + 1])
def test_chunks_of_every_size_give_the_logits_of_the_whole(chunk: int, prepare: Callable[[Graph], Graph]) -> None:
    """Also those longer than the window, and those that end in the middle of one."""
    graph = gemma()
    ids = tokens(2, TIME)
    got = feed(session(prepare(step(graph))), ids, in_chunks(chunk))
    assert difference(got, expected(graph, ids)) < TOLERANCE


@pytest.mark.parametrize("options", [{"layers": 3}, {"layers": 3, "nested": True}, {"layers": 1}], ids=str)
def test_repetitions_of_every_depth(options: dict[str, Any]) -> None:
    """None, one, and one in another, whose states and weights are stacks of stacks."""
    graph = decoder(**options)
    given = parameters(graph)
    ids = tokens(2, 12) % 11
    want = reference.run(graph, given, {"tokens": ids})["logits"]
    model = Session(lower(stateful(graph), given.__getitem__, max_positions=64), threads=1, spin=False)
    assert len(model.layouts) == 1 + 2 * options["layers"] * (2 if "nested" in options else 1)
    model.reset(2, 64)
    got = np.concatenate([model.advance(ids[:, :5]), model.advance(ids[:, 5:6]), model.advance(ids[:, 6:])], 1)
    assert difference(got, want) < TOLERANCE


@pytest.mark.parametrize("dims", [{"head_dim": 8, "query_scale": 8}, {"head_dim": 4}, {"kv_heads": 4}, {"kv_heads": 1}])
def test_heads_of_every_width_have_a_form(dims: dict[str, int]) -> None:
    """8 entries: the kernel can't rotate them; 4: it can't take them at all, and caches are the IR's rings."""
    graph = gemma(**dims)
    ids = tokens(2, TIME)
    model = session(step(graph))
    for chunk in (7, 1):
        assert difference(feed(model, ids, in_chunks(chunk)), expected(graph, ids)) < TOLERANCE
    width = dims.get("head_dim", 16)
    layouts = Counter(model.layouts.values())
    assert layouts == ({"plain": 9} if width == 4 else {"plain": 1, "window": 4, "linear": 4})


@pytest.mark.parametrize("last", [False, True], ids=["all", "last"])
def test_rows_of_different_lengths(last: bool) -> None:
    """Padded prompts, then tokens one by one, and rows that pause: each row is what it would be alone."""
    graph, ids = gemma(), tokens(3, 64)
    chunks = ([20, 3, 11], [1, 1, 1], [0, 9, 4], [1, 0, 1], [5, 5, 5], [1, 1, 1], [1, 1, 1])
    for length, counts, got in fed(session(fused(step(graph, last=last))), ids, chunks):
        for row, n in enumerate(counts):
            if n:
                want = expected(graph, ids[row : row + 1, : length[row] + n])[0]
                mine = got[row, :1] if last else got[row, :n]
                assert difference(mine, want[-1:] if last else want[-n:]) < TOLERANCE, (counts, row)


def test_a_window_that_no_stream_outgrows_costs_no_more_than_the_stream() -> None:
    graph = gemma()
    ids = tokens(1, WINDOW)
    model = Session(lower(step(graph), weights(graph).__getitem__, max_positions=WINDOW), threads=1, spin=False)
    assert "window" not in model.layouts.values()
    model.reset(1, WINDOW)
    assert difference(model.advance(ids), expected(graph, ids)) < TOLERANCE


def test_prefill_in_pieces_returns_what_follows_each_row() -> None:
    graph = gemma()
    s = session(step(graph, last=True))
    ids, counts = tokens(3, TIME), np.array([TIME, 4, 17])
    s.reset(3, 64)
    got = s.prefill(ids, counts, chunk=6)
    for row, n in enumerate(counts):
        assert difference(got[row], expected(graph, ids[row : row + 1, :n])[0, -1:]) < TOLERANCE


def test_a_second_stream_begins_anew() -> None:
    graph = gemma()
    s = session(step(graph, last=True))
    s.reset(1, 64)
    first = s.advance(tokens(1, TIME))
    s.advance(tokens(1, 9, seed=5))
    s.reset(1, 64)
    assert np.array_equal(first, s.advance(tokens(1, TIME)))


def test_chunks_that_do_not_fit_are_refused() -> None:
    s = session(step(gemma(), last=True))
    with pytest.raises(ValueError, match="reset"):
        s.advance(tokens(1, 3))
    with pytest.raises(ValueError, match="made for 64 positions"):
        s.reset(1, 65)
    s.reset(2, 20)
    with pytest.raises(ValueError, match="at least one entry"):
        s.advance(tokens(2, 3), np.array([3, 0]))
    with pytest.raises(ValueError, match="`count` must be 2 numbers from 0 to 3"):
        s.advance(tokens(2, 3), np.array([3, 4]))
    s.advance(tokens(2, 15))
    with pytest.raises(ValueError, match="room for 20"):
        s.advance(tokens(2, 6))


def test_a_whole_sequence_model_is_no_session() -> None:
    graph = gemma()
    with pytest.raises(ValueError, match="step form"):
        Session(lower(graph, weights(graph).__getitem__))


def test_one_kernel_a_layer_and_nothing_left_of_what_it_took_over() -> None:
    graph = fused(step(gemma(), last=True))
    found = decoding(ir.to_proto(lower(graph, weights(graph).__getitem__).model).graph)
    layers = 4
    assert found["GroupQueryAttention"] == layers
    assert found["MatMul"] == 5 * layers  # packed projections, output, gate, up, down
    assert found["SkipSimplifiedLayerNormalization"] == 2 * layers - 1
    assert found["RMSNormalization"] == 2 * layers + 2
    assert not found["RotaryEmbedding"] and not found["Split"] and not found["Reshape"] and not found["Transpose"]


def test_inputs_and_outputs_have_the_names_and_dims_of_the_spec() -> None:
    graph = step(gemma(), last=True)
    model = lower(graph, weights(graph).__getitem__).model
    shapes = {
        v.name: [d if isinstance(d, int) else d.value for d in v.shape]
        for v in (*model.graph.inputs, *model.graph.outputs)
    }
    key = "lm.layer[{}].attend.attention.attend.key"
    assert shapes["tokens"] == ["batch", "time"]
    assert shapes["count"] == shapes["past/length"] == shapes["present/length"] == ["batch"]
    assert shapes["logits"] == ["batch", 1, 50]
    assert shapes["past/" + key.format(1)] == shapes["present/" + key.format(1)] == ["batch", 2, "capacity", 16]
    assert shapes["past/" + key.format(2)] == ["batch", 2, WINDOW + 16, 16]
    assert len(shapes) == 3 + 1 + 2 + 4 * 4 - 1
    assert model.ir_version == 10 and dict(model.graph.opset_imports) == {"": 24, "com.microsoft": 1}


@pytest.mark.parametrize("prepare", [lambda g: g, fused], ids=["plain", "fused"])
def test_values_by_name_are_those_of_the_reference(prepare: Callable[[Graph], Graph]) -> None:
    graph = prepare(gemma())
    ids = tokens(2, TIME)
    place = np.tile(np.arange(TIME), (2, 1))
    inputs = {"tokens": ids, "position": place, "document": 0 * place}
    lowered = lower(graph, weights(graph).__getitem__)
    got = intermediates(lowered, inputs)
    seen = {}
    reference.run(graph, weights(graph), inputs, watch=lambda v, i, a: seen.__setitem__((v, i), a))
    compared = [k for k in seen if k in lowered.names]
    assert len(compared) > 0.7 * len(seen)
    assert any(lowered.names[k] == "lm.layer[3].attend.attention.attend" for k in compared)
    for key in compared:
        assert difference(got[lowered.names[key]].reshape(seen[key].shape), seen[key]) < TOLERANCE, lowered.names[key]


def test_the_first_wrong_value_names_the_fault() -> None:
    """One weight of layer 2 is wrong in the model: everything before agrees, its own product is the first not to."""
    graph = gemma()
    right = weights(graph)
    wrong = {**right, "lm.layer[2].feed.glu.up.weight": right["lm.layer[2].feed.glu.up.weight"] * 1.01}
    place = np.tile(np.arange(TIME), (1, 1))
    inputs = {"tokens": tokens(1, TIME), "position": place, "document": 0 * place}
    lowered = lower(graph, wrong.__getitem__)
    got = intermediates(lowered, inputs)
    off: list[str] = []

    def watch(v: Any, index: tuple[int, ...], array: np.ndarray) -> None:
        name = lowered.names.get((v, index))
        if name and difference(got[name].reshape(array.shape), array) > 1e-4:
            off.append(name)

    reference.run(graph, right, inputs, watch=watch)
    assert off[0] == "lm.layer[2].feed.glu.up"


COUNTS = ([CAPPED, 3, 9], [CAPPED + 1, 2, 20], [1, 1, 1], [0, 40, 0], [1, 1, 1], [2, CAPPED, 1], [29, 1, 0], [1, 1, 1],
          [1, 0, 1], [CAPPED, 17, 30], [1, 1, 1])  # fmt: skip
"""Entries of three rows in each chunk: padded, paused, one by one and many, which attend by single ops."""


CAPPED_DIMS = [{}, {"kv_heads": 4}, {"kv_heads": 1}, {"head_dim": 8, "query_scale": 8}, {"window": 128},
               {"window": 2 * CAPPED + 3}]  # fmt: skip


@pytest.mark.parametrize("dims", CAPPED_DIMS, ids=str)
@pytest.mark.parametrize("prepare", [lambda g: g, fused], ids=["plain", "fused"])
def test_long_chunks_with_capped_scores(dims: dict[str, int], prepare: Callable[[Graph], Graph]) -> None:
    """Shorter and longer than the window and its cache, which fills, moves, and is read by the kernel afterwards."""
    graph, ids = gemma(**dims), tokens(3, 128)
    whole = expected(graph, ids)
    model = lower(prepare(step(graph)), weights(graph).__getitem__, max_positions=128)
    for length, counts, got in fed(Session(model, threads=1, spin=False), ids, COUNTS):
        for row, n in enumerate(counts):
            want = whole[row, length[row] : length[row] + n]
            assert not n or difference(got[row, :n], want) < TOLERANCE, (counts, row)


def test_long_chunks_of_heads_that_turn_in_part() -> None:
    text = (
        resources.files(SHIPPED).joinpath("gemma2.yaml").read_text().replace("rope(10000)", "rope(10000, fraction=0.5)")
    )
    spec = load_text(text, "half", "small", [f"{k}={v}" for k, v in {**DIMS, "head_dim": 32}.items()])
    graph, ids = elaborate(spec, "lm"), tokens(1, 60)
    model = lower(fused(step(graph)), weights(graph).__getitem__, max_positions=64)
    kinds = Counter(n.op_type for n in model.model.graph.all_nodes())
    assert kinds["RotaryEmbedding"] == 2 * 4 and not kinds["Cos"], "turned in the branches, by the kernel's own tables"
    got = feed(Session(model, threads=1, spin=False), ids, [20, 1, 30, 9])
    assert difference(got, expected(graph, ids)) < TOLERANCE


@pytest.mark.parametrize("dims", CAPPED_DIMS, ids=str)
def test_caches_are_those_of_the_kernel(dims: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """After every chunk, in every row that the kernel has filled."""
    graph, ids = fused(step(gemma(**dims))), tokens(3, 128)

    def model() -> Session:
        made = lower(graph, weights(graph).__getitem__, max_positions=128)
        return Session(made, threads=1, spin=False)

    mine = model()
    monkeypatch.setattr(capped, "CAPPED", 10**6)
    theirs = model()
    window = dims.get("window", WINDOW)
    for (length, counts, _), _ in zip(fed(mine, ids, COUNTS), fed(theirs, ids, COUNTS), strict=True):
        for path, cache in mine.caches().items():
            rows = window + WINDOW_SLACK if mine.layouts[path] == "window" else 128
            for row, total in enumerate(length + counts):
                moved = -(-max(0, total - rows) // (WINDOW_SLACK + 1)) * (WINDOW_SLACK + 1)
                filled = slice(0, total - moved)
                assert difference(cache[row, :, filled], theirs.caches()[path][row, :, filled]) < TOLERANCE, path
