"""`--set` on what was trained: what leaves every parameter as it is changes the model, anything else is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.tiny_run import tiny_run
from typer.testing import CliRunner

from planform.backends.onnx import verify_contract
from planform.runtime.cli.commands import app
from planform.runtime.errors import UserError
from planform.runtime.evaluate import evaluate_run
from planform.runtime.run import spec_of_run
from planform.spec import SpecError, dim_values
from planform.spec.diagnostics import Diagnostics


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("runs") / "tiny")


def planform(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_spec_of_a_run_with_another_window(run: Path) -> None:
    dims = dim_values(spec_of_run(run, ["window=24"]).dims, Diagnostics())
    assert dims == {**dim_values(spec_of_run(run).dims, Diagnostics()), "window": 24}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("d=32", r"d=32 changes the shape of lm\.layer\[0\]\.attend\..*\.weight from \[16, 1, 8\] to \[32, 1, 8\]"),
        ("vocab=300", r"vocab=300 changes the shape of table from \[256, 16\] to \[300, 16\]"),
        ("layers=1", r"with layers=1 there is no parameter lm\.layer\[1\]\..*, which was trained"),
        ("layers=3", r"with layers=3 there is a parameter lm\.layer\[2\]\..*, which was never trained"),
    ],
)
def test_what_changes_a_parameter_is_refused(run: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        spec_of_run(run, [override])


def test_an_unknown_dim_is_a_finding(run: Path) -> None:
    with pytest.raises(SpecError, match="there is no dim `windo`"):
        spec_of_run(run, ["windo=4"])


def test_an_artefact_says_what_was_set(run: Path, tmp_path: Path) -> None:
    found = planform("export", run, "--out", tmp_path / "onnx", "--positions", 256, "--set", "window=24")
    assert found.exit_code == 0 and verify_contract(tmp_path / "onnx").holds
    contract = json.loads((tmp_path / "onnx" / "contract.json").read_text())
    assert contract["origin"]["overrides"] == "window=24"
    planform("export", run, "--out", tmp_path / "own", "--positions", 256)
    plain = json.loads((tmp_path / "own" / "contract.json").read_text())
    rings, before = ({s["path"]: s["shape"][2] for s in c["states"] if s["layout"] == "window"}
                     for c in (contract, plain))  # fmt: skip
    assert rings == {path: n + 24 - 8 for path, n in before.items()} and len(rings) == 2
    assert "overrides" not in plain["origin"]
    assert planform("export", run, "--out", tmp_path / "b", "--set", "d=32").exit_code == 2
    assert not (tmp_path / "b").exists()


def test_verify_with_another_window(run: Path, tmp_path: Path) -> None:
    """The graph with the window that was set, and an artefact made so; one made otherwise differs from it."""
    planform("export", run, "--out", tmp_path / "wide", "--positions", 256, "--set", "window=12")
    planform("export", run, "--out", tmp_path / "narrow", "--positions", 256)
    good = planform("verify", run, "--set", "window=12", "--onnx", tmp_path / "wide", "--backend", "onnx", "--json")
    told = json.loads(good.stdout)
    assert good.exit_code == 0 and told["window"] == 12
    wrong = planform("verify", run, "--set", "window=12", "--onnx", tmp_path / "narrow", "--backend", "onnx", "--json")
    assert wrong.exit_code == 1 and json.loads(wrong.stdout)["divergences"]


def test_show_of_a_run(run: Path) -> None:
    """State follows the window, and nothing else does."""
    own, wide = (json.loads(planform("show", run, *more, "--json").stdout) for more in ([], ["--set", "window=24"]))
    assert wide["state_bytes"]["fixed"] == 3 * own["state_bytes"]["fixed"] > 0
    assert wide["parameters"] == own["parameters"]
    refused = planform("show", run, "--set", "d=32")
    assert refused.exit_code == 2 and "changes the shape" in refused.stderr
    assert "has its size" in planform("show", run, "--size", "2b").stderr


def test_the_loss_with_another_window(run: Path, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        (tmp_path / "text" / f"{i}.txt").write_bytes(rng.integers(97, 110, 400).astype(np.uint8).tobytes())
    own, other = (
        evaluate_run(run, files=tmp_path / "text", batches=2, overrides=o)["heldout_loss"] for o in ([], ["window=2"])
    )
    assert 0.001 < abs(own - other) < 1
    with pytest.raises(UserError, match="changes the shape"):
        evaluate_run(run, files=tmp_path / "text", overrides=["ff=12"])
