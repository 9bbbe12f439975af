"""The step form says what the training form says, however the stream is cut."""

from __future__ import annotations

import numpy as np
import pytest
from tests.compiler.graphs import ROWS, STREAM, TIME, decoder, decoder_loss, parameters

from planform.backends.reference import run, zeros
from planform.compiler.ir import Argument, Builder, Graph, Input, Origin, verify
from planform.compiler.ops.attention import Attend
from planform.compiler.ops.control import Repeat
from planform.compiler.ops.loss import CrossEntropy
from planform.compiler.ops.reduce import Mean
from planform.compiler.parameters import stack_shape
from planform.compiler.passes.stateful import stateful
from planform.compiler.types import Dim
from planform.spec import SpecError

SHAPES = [{"layers": 1}, {"layers": 3}, {"layers": 2, "nested": True}]


def stream(graph: Graph, tokens: np.ndarray, cuts: list[int], weights: dict) -> np.ndarray:
    """Outputs of a step graph for tokens that arrive in chunks."""
    states = zeros(graph, {"batch": len(tokens), "capacity": tokens.shape[1] + 1})
    parts = []
    for part in np.split(tokens, cuts, 1):
        found = run(graph, weights, {"tokens": part}, states)
        parts.append(found.pop("logits"))
        states = found
    assert set(states) == {s.path for s in graph.states}
    return np.concatenate(parts, 1)


@pytest.mark.parametrize("options", SHAPES)
@pytest.mark.parametrize("cuts", [[], [1, 2, 3], [7], list(range(1, 10))])
def test_any_cut_gives_the_training_form(options, cuts):
    graph = decoder(**options)
    step = stateful(graph)
    verify(step)
    weights, tokens = parameters(graph), np.random.default_rng(1).integers(0, 11, (2, 10))
    want = run(graph, weights, {"tokens": tokens})["logits"]
    np.testing.assert_allclose(stream(step, tokens, cuts, weights), want, rtol=1e-10, atol=1e-12)


def test_rows_of_different_lengths_are_padded_at_the_end():
    graph = decoder(layers=2)
    step = stateful(graph)
    weights, rng = parameters(graph), np.random.default_rng(2)
    tokens = rng.integers(0, 11, (2, 9))
    want = run(graph, weights, {"tokens": tokens})["logits"]
    states = zeros(step, {"batch": 2, "capacity": 16})
    # Row 0 gets 2, 4, 3 entries, row 1 gets 5, 1, 3: both see all nine.
    seen = np.zeros(2, int)
    for counts in ([2, 5], [4, 1], [3, 3]):
        width = max(counts)
        chunk = rng.integers(0, 11, (2, width))
        for row, n in enumerate(counts):
            chunk[row, :n] = tokens[row, seen[row] : seen[row] + n]
        found = run(step, weights, {"tokens": chunk, "count": np.array(counts, np.int32)}, states)
        logits = found.pop("logits")
        for row, n in enumerate(counts):
            np.testing.assert_allclose(logits[row, :n], want[row, seen[row] : seen[row] + n], rtol=1e-10)
        states, seen = found, seen + counts
    assert states["length"].tolist() == [9, 9]


def test_states_are_stacked_like_parameters():
    step = stateful(decoder(layers=2, nested=True))
    found = {s.path: s for s in step.states}
    assert list(found) == [
        "length",
        "lm.group[0:2].layer[0:2].attend.core.key",
        "lm.group[0:2].layer[0:2].attend.core.value",
    ]
    key = found["lm.group[0:2].layer[0:2].attend.core.key"]
    assert key.stacked == 2
    assert str(key.type) == "f32[2, 2, batch, kv_heads=2, slots=4, head_dim=4]"
    assert set(found) <= set(step.outputs)


def test_positions_and_documents_are_no_inputs_of_the_step_form():
    step = stateful(decoder(layers=2))
    assert [v.name for v in step.inputs if type(v) is Input] == ["tokens", "count"]


def test_a_step_graph_is_left_alone():
    step = stateful(decoder())
    assert stateful(step) is step


def refusal(graph: Graph) -> SpecError:
    with pytest.raises(SpecError) as e:
        stateful(graph)
    return e.value


def test_a_loss_is_refused_by_op_path_and_place():
    e = refusal(decoder_loss())
    # `next` looks one ahead; the mean over all entries depends on the whole axis.
    assert [d.code for d in e.diagnostics] == ["PF0340", "PF0340"]
    assert e.diagnostics[0].message == "`next` looks 1 ahead along `time`, so `lm` has no step form"
    assert [n.text for n in e.diagnostics[0].notes] == ["in loss", "at lm.yaml:30:9"]
    assert "cross_entropy" in e.diagnostics[1].message


def test_attention_to_later_entries_is_refused_inside_a_repetition():
    e = refusal(decoder(layers=3, causal=False))
    assert "`attend` looks 3 ahead along `time`" in e.diagnostics[0].message
    assert e.diagnostics[0].notes[0].text == "in lm.layer[0:3].attend.core"


def test_a_mean_over_the_stream_is_refused():
    b = Builder("pool", stream="time")
    x = b.add(Input("x", STREAM))
    e = refusal(b.finish({"y": b.emit(Mean((TIME,)), x)}))
    assert "`mean` looks ahead" in e.diagnostics[0].message


def test_a_graph_without_a_stream_is_refused():
    b = Builder("mlp")
    x = b.add(Input("x", STREAM))
    assert refusal(b.finish({"x": x})).diagnostics[0].code == "PF0340"


def test_documents_have_no_place_in_a_stream():
    b = Builder("lm", stream="time")
    document = b.add(Input("document", ROWS, default="zeros"))
    e = refusal(b.finish({"d": document}))
    assert e.diagnostics[0].code == "PF0341"
    assert CrossEntropy().reach().ahead == 0  # its own reach is pointwise: only the lost axis gives it away


def test_layers_that_share_a_graph_keep_states_of_their_own():
    """A graph called inside a repetition has paths of its own, without the layers' slice."""
    heads = STREAM.with_dims((*STREAM.dims[:2], Dim("heads", 2), Dim("head_dim", 4)))
    b = Builder("lm", stream="time")
    x = b.add(Input("x", heads))
    where = [b.add(Input(n, ROWS, default=d)) for n, d in (("position", "iota"), ("document", "zeros"))]
    inner = Builder("layer")
    h, position, document = (inner.add(Argument(v.name, v.type)) for v in (x, *where))
    inner.origin = Origin("shared.attend", "lm.yaml:4:5")
    region = inner.finish({"x": inner.emit(Attend(0.5, True, 3), h, h, h, position, document)})
    b.origin = Origin("lm.layer", "lm.yaml:9:9")
    graph = b.finish({"logits": b.emit(Repeat(2, 1, 0), x, *where, region=region)[0]})
    step = stateful(graph)
    verify(step)
    assert [s.path for s in step.states][1:] == [
        "lm.layer[0:2].shared.attend.key",
        "lm.layer[0:2].shared.attend.value",
    ]
    assert all(s.stacked == len(stack_shape(s.path)) for s in step.states)
    data = np.random.default_rng(4).normal(size=(2, 7, 2, 4))
    states, parts = zeros(step, {"batch": 2}), []
    for chunk in np.split(data, [2, 3], 1):
        states = run(step, {}, {"x": chunk}, states)
        parts.append(states.pop("logits"))
    want = run(graph, {}, {"x": data})["logits"]
    np.testing.assert_allclose(np.concatenate(parts, 1), want, rtol=1e-10)


def test_two_ops_at_one_path_have_two_states():
    b = Builder("lm", stream="time")
    x = b.add(Input("x", STREAM.with_dims((*STREAM.dims[:2], Dim("heads", 2), Dim("head_dim", 4)))))
    where = [b.add(Input(n, ROWS, default=d)) for n, d in (("position", "iota"), ("document", "zeros"))]
    b.origin = Origin("lm.attend")
    y = b.emit(Attend(0.5, True), x, x, x, *where)
    step = stateful(b.finish({"y": b.emit(Attend(0.3, True), y, x, x, *where)}))
    verify(step)
    assert [s.path for s in step.states] == [
        "length", "lm.attend.key", "lm.attend.value", "lm.attend.key_2", "lm.attend.value_2",
    ]  # fmt: skip
