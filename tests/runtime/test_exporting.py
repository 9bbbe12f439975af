"""export: what it writes, what it refuses to write over."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.tiny_run import tiny_run

from planform.backends.onnx import verify_contract
from planform.runtime.errors import UserError
from planform.runtime.exporting import check_target, export_run, is_artefact


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def artefact(run: Path) -> Path:
    return Path(export_run(run, run / "onnx", positions=256)["folder"])


def test_an_artefact_holds_its_contract(artefact: Path) -> None:
    verdict = verify_contract(artefact)
    assert verdict.holds and 0 < verdict.errors["logits"] < 2e-5
    contract = json.loads((artefact / "contract.json").read_text())
    assert (
        contract["form"] == "step" and contract["origin"]["spec"] == "gemma2" and contract["origin"]["size"] == "small"
    )
    assert contract["fixture"]["chunks"] == 2 + 4 and contract["tokenizer"] == "tokenizer.json"
    with np.load(artefact / "fixture.npz") as fixture:
        assert fixture["0/in/tokens"].shape[1] + fixture["1/in/tokens"].shape[1] > 2 * 8  # over two windows


def test_exporting_again_gives_the_same_bytes(run: Path, artefact: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "again", positions=256)
    for name in ("model.onnx", "model.onnx.data", "contract.json", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (artefact / name).read_bytes(), name


def test_large_models_have_a_fixture_of_xla(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planform.runtime.exporting.BY_REFERENCE", 0)
    export_run(run, tmp_path / "onnx", positions=256)
    verdict = verify_contract(tmp_path / "onnx")
    assert verdict.holds and verdict.errors["logits"] < 2e-5
    contract = json.loads((tmp_path / "onnx" / "contract.json").read_text())
    assert contract["fixture"]["of"] == "XLA in float32"


def test_an_artefact_is_replaced(run: Path, artefact: Path) -> None:
    before = {p.name for p in artefact.iterdir()}
    export_run(run, artefact, positions=256)
    assert {p.name for p in artefact.iterdir()} == before and verify_contract(artefact).holds


def test_foreign_folders_are_left_alone(run: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("all of it")
    with pytest.raises(UserError, match="isn't an exported model"):
        export_run(run, foreign)
    assert [p.name for p in foreign.iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        export_run(run, tmp_path / "file")
    for inside in (run, run.parent):
        with pytest.raises(UserError):
            export_run(run, inside)


def test_another_programs_contract_is_foreign(tmp_path: Path) -> None:
    (tmp_path / "contract.json").write_text('{"producer": "somebody else"}')
    assert not is_artefact(tmp_path)
    with pytest.raises(UserError):
        check_target(tmp_path)
    (tmp_path / "contract.json").write_text("not JSON")
    assert not is_artefact(tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the folder of a training run"):
        export_run(tmp_path, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()
