"""`verify --mutate`: every wrong version is caught, and one that isn't is reported as missed."""

from __future__ import annotations

import pytest
from tests.runtime.mutations import mutations
from tests.runtime.tiny_run import tiny_graph

from planform.compiler.elaborate import elaborate
from planform.compiler.ir import Graph
from planform.compiler.mistakes import Mistake
from planform.compiler.passes.pipeline import optimise
from planform.runtime import mutate as module
from planform.runtime.mutate import mutate
from planform.runtime.verify import TOKENS, WHOLE
from planform.spec import load


@pytest.fixture(scope="module")
def graph() -> Graph:
    return tiny_graph()


def test_every_mistake_is_caught(graph: Graph) -> None:
    told: list[str] = []
    trials = mutate(graph, backends=("onnx",), report=lambda t: told.append(t.mistake))
    assert [t.mistake for t in trials] == told and all(t.caught for t in trials), [t for t in trials if not t.caught]
    assert not [t for t in trials if t.refused]
    names = {t.mistake.split(": ")[-1] for t in trials}
    assert {
        "window dropped", "layers in the wrong order", "no cap", "scale off", "wrong half rotated",
        "`table` tied no more", "offset forgotten", "state not carried on",
    } <= names  # fmt: skip
    states = [t for t in trials if t.form == TOKENS]
    assert "length" in {t.path for t in states} and len(states) == 1 + 2 * len(
        [n for n in graph.walk() if n.op.name == "attend"]
    )


def test_gates_that_start_shut_hide_no_mistake() -> None:
    """Of the denoiser's gated layers and its last map, all zeros at first."""
    small = ("rows=2", "columns=3", "features=2", "width=8", "heads=2", "layers=2", "waves=4", "classes=3")
    trials = mutate(elaborate(load("spatial_functa_diffusion", "small", small), "denoise"), backends=("onnx",))
    assert len(trials) >= 8 and all(t.caught for t in trials), [t for t in trials if not t.caught]


def test_what_is_not_wrong_counts_as_missed(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "mistakes", lambda g: [Mistake("nothing at all", "lm", lambda g: g)])
    (trial, *_) = mutate(graph, backends=("onnx",))
    assert (trial.mistake, trial.form, trial.caught) == ("nothing at all", WHOLE, False)
    assert 0 < trial.error < 2e-5


def test_a_backend_that_is_off_already_is_no_judge(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = mutations(graph)["no cap on scores"].edit
    monkeypatch.setattr(module, "optimise", lambda g, *how: optimise(wrong(g), *how))
    with pytest.raises(ValueError, match="before anything is broken"):
        mutate(graph, backends=("onnx",))
