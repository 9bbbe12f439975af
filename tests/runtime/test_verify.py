"""verify: right models agree in every form, wrong ones are found, and at the right place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.runtime.mutations import mutations
from tests.runtime.tiny_run import tiny_graph, tiny_spec

from planform.compiler.elaborate import elaborate
from planform.compiler.ir import Graph
from planform.compiler.program import program
from planform.runtime.exporting import export_model
from planform.runtime.probe import probe_inputs, probe_length, probe_parameters
from planform.runtime.verify import LOSS, PROMPT, TOKENS, WHOLE, Plan, verify
from planform.runtime.watch import Watcher, expose, first_difference, relative
from planform.spec import load_text


@pytest.fixture(scope="module")
def graph() -> Graph:
    return tiny_graph()


def test_right_models_agree_in_every_form(graph: Graph) -> None:
    report = verify(graph, backends=("onnx",))
    assert report.holds and not report.notes
    assert [a.form for a in report.agreements] == [WHOLE, PROMPT, TOKENS]
    assert all(0 < a.error < 2e-5 for a in report.agreements)
    assert report.time > 2 * report.window == 16


def test_xla_agrees(graph: Graph) -> None:
    report = verify(graph, backends=("xla",), forms=(WHOLE, TOKENS))
    assert report.holds and len(report.agreements) == 2


def test_the_loss_that_is_trained_agrees(graph: Graph) -> None:
    """After the passes of training: attention in blocks, the head in chunks."""
    (update,) = program(tiny_spec()).updates
    report = verify(graph, backends=("xla",), forms=(), losses=[update.loss])
    (found,) = report.agreements
    assert (found.backend, found.form) == ("xla", LOSS) and 0 < found.error < 2e-5
    wrong = mutations(graph)["no cap on scores"]
    (other,) = verify(graph, backends=("xla",), forms=(), losses=[update.loss], edits={"xla": wrong.edit}).divergences
    assert (other.form, other.path) == (LOSS, wrong.path)


@pytest.mark.parametrize("name", list(mutations(tiny_graph())))
@pytest.mark.parametrize("form", [WHOLE, PROMPT, TOKENS])
def test_wrong_models_are_found_at_their_place(graph: Graph, name: str, form: str) -> None:
    wrong = mutations(graph)[name]
    report = verify(graph, backends=("onnx",), forms=(form,), edits={"onnx": wrong.edit})
    (found,) = report.divergences
    assert not report.holds and found.backend == "onnx" and found.form == form
    if found.refused:  # what looks ahead has no step form at all
        assert name == "mask that looks ahead" and "PF0340" in found.refused
        return
    assert found.path == wrong.path and found.output_error > 2e-5
    assert spec_text(found.place).startswith(wrong.text)


def test_a_wrong_model_on_xla_is_found(graph: Graph) -> None:
    wrong = mutations(graph)["no cap on scores"]
    (found,) = verify(graph, backends=("xla",), forms=(WHOLE,), edits={"xla": wrong.edit}).divergences
    assert (found.backend, found.path) == ("xla", wrong.path)


def test_the_bound_is_what_float32_can_tell() -> None:
    """A difference of large numbers is known to few digits, whatever computes it; a mistake beyond them is found."""

    def lost(part: float) -> Graph:
        text = f"{{body: 'y = (x * 1000.0 + {part} * x) - x * 1000.0', inputs: {{x: 'float[batch, d]'}}}}"
        return elaborate(load_text(f"planform: 1\nmodel: lost\ndims: {{d: 64}}\ngraphs: {{m: {text}}}", "lost.yaml"))

    report = verify(lost(1.0), forms=(WHOLE,))
    assert report.holds and len(report.agreements) == 2
    assert all(2e-5 < a.error <= a.bound < 1e-3 for a in report.agreements)
    assert (
        len(verify(lost(1.0), forms=(WHOLE,), edits=dict.fromkeys(("xla", "onnx"), lambda _: lost(1.002))).divergences)
        == 2
    )


def spec_text(place: str | None) -> str:
    name, line, column = str(place).rsplit(":", 2)
    source = tiny_spec().source
    assert name == source.name
    return source.line(int(line))[int(column) - 1 :]


def test_a_damaged_artefact_is_found(graph: Graph, tmp_path: Path) -> None:
    right = probe_parameters(graph)
    wrong = {**right, "lm.norm.rms_norm.scale": right["lm.norm.rms_norm.scale"] + 1}
    export_model(graph, wrong, tmp_path / "onnx", metadata={}, fixture=False)
    report = verify(graph, right, backends=(), artefact=tmp_path / "onnx")
    (found,) = report.divergences
    assert (found.backend, found.form, found.path) == ("artefact", PROMPT, "lm.norm.rms_norm")


def test_probes_leave_nothing_idle(graph: Graph) -> None:
    """Scores and logits reach their caps, windows end inside the inputs, rows hold several documents."""
    parameters, time = probe_parameters(graph), probe_length(graph)
    inputs = probe_inputs(graph, 3, time, 0, documents=True)
    assert time > 16 and inputs["document"].max(1).tolist()[0] == 0 and (inputs["document"].max(1)[1:] > 0).all()
    watcher = Watcher(graph)
    from planform.backends import reference

    reference.run(graph, parameters, inputs, watch=watcher)
    logits = next(w.array for w in watcher.found if w.op == "unembed")
    assert np.abs(logits).max() > 15
    q, k = (w.array for w in [w for w in watcher.found if w.op == "rope"][:2])
    scores = np.einsum("bthd,bsd->bhts", q, k[:, :, 0]) * 8**-0.5
    assert np.abs(scores).max() > 25


def test_watched_values_are_those_of_the_run(graph: Graph) -> None:
    """`expose` changes no value, and its keys are the watcher's."""
    from planform.backends import reference

    parameters, inputs = probe_parameters(graph), probe_inputs(graph, 2, 11, 0, documents=True)
    watcher, shown = Watcher(graph), expose(graph)
    truth = reference.run(graph, parameters, inputs, watch=watcher)
    found = shown.read(outputs := reference.run(shown.graph, parameters, inputs))
    np.testing.assert_array_equal(outputs["logits"], truth["logits"])
    assert set(found) == {w.key for w in watcher.found} and len(found) > 30
    assert not list(first_difference(watcher.found, found, 0.0, lambda w: ...))


def test_relative_error() -> None:
    assert relative(np.array([1.0, 2.5]), np.array([1.0, 2.0])) == 0.25
    assert relative(np.array([np.nan]), np.array([1.0])) == np.inf
    assert relative(np.array([0.1]), np.array([0.0])) == np.inf
    assert relative(np.zeros(0), np.zeros(0)) == 0.0


def test_plans_cross_the_window_at_another_step_in_each_row() -> None:
    plan = Plan.tokens(time=27, window=8, batch=3)
    lengths = np.cumsum([counts for _, counts in plan.chunks], 0)
    assert lengths[-1][0] == 27 and len(set(lengths[-1])) == 3
    assert (lengths[0] < 8).all() and (lengths[-1] > 16).all()
    assert all(width >= max(counts) for width, counts in plan.chunks)
