"""A recurrent model from its run to artefacts: quantised, for onnxruntime-genai, and writing without end."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.tiny_run import recurrent_run, tiny_run
from typer.testing import CliRunner

from planform.backends import reference
from planform.backends.onnx import verify_contract
from planform.compiler.elaborate import elaborate
from planform.runtime.cli import app
from planform.runtime.errors import UserError
from planform.runtime.exporting import export_run
from planform.runtime.generation.model import open_decoder
from planform.runtime.generation.sampling import Sampling
from planform.runtime.generation.writing import Rows
from planform.runtime.quantize import Wish
from planform.runtime.run import parameters_of_run, spec_of_run

TEXT = "the quick brown fox jumps over the lazy dog, and then it rests. " * 60
POSITIONS, WRITTEN = 32, 150
MATRICES = 5 * 3 * 64 * 128 + 4 * 3 * 64 * 96 + 64 * 64 + 32 * 64 + 256 * 64
"""Entries of feed-forward parts, recurrent layers, attention and the table; gates and convolutions stay as they are."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = recurrent_run(tmp_path_factory.mktemp("runs") / "tiny")
    export_run(folder, folder / "onnx", positions=POSITIONS)
    return folder


def planform(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def logits(run: Path, ids: np.ndarray) -> np.ndarray:
    """The reference's of the whole sequence ids [batch, time]."""
    return reference.run(elaborate(spec_of_run(run)), parameters_of_run(run), {"tokens": ids})["logits"]


def endless(folder: Path, prompts: list[np.ndarray]) -> Rows:
    return Rows(open_decoder(folder), prompts, None, Sampling(temperature=0))


@pytest.mark.parametrize("engine", ["xla", "onnx"])
def test_texts_without_end(run: Path, engine: str) -> None:
    """Far past the positions that it was exported for, each token is the likeliest by the reference, or as likely."""
    prompts = [np.arange(40, 50), np.arange(60, 63)]
    written: list[list[int]] = [[], []]
    for row, token in islice(endless(run if engine == "xla" else run / "onnx", prompts), 2 * WRITTEN):
        assert token is not None
        written[row].append(token)
    assert [len(w) for w in written] == [WRITTEN, WRITTEN] and WRITTEN > 4 * POSITIONS
    for prompt, tokens in zip(prompts, written):
        ids = np.concatenate([prompt, tokens])[None]
        given = logits(run, ids)[0, len(prompt) - 1 : -1]
        chosen = given[np.arange(WRITTEN), tokens]
        np.testing.assert_allclose(chosen, given.max(-1), atol=1e-4)


def test_a_model_that_keeps_all_it_reads_must_end(tmp_path: Path) -> None:
    folder = tiny_run(tmp_path / "tiny")
    with pytest.raises(UserError, match="must end somewhere"):
        endless(folder, [np.arange(5)])
    found = planform("generate", folder, "--prompt", "a", "--tokens", 0)
    assert found.exit_code and "how many --tokens" in " ".join(found.stderr.split())


def test_a_stop_ends_a_text_without_end(run: Path) -> None:
    """By the command: what a text of 300 tokens says after 200 ends one without end there, or earlier."""
    how = ("generate", run / "onnx", "--prompt", "def f(", "--temperature", 1, "--quiet")
    text = planform(*how, "--tokens", 300).stdout
    stop = next(text[i : i + 3] for i in range(200, len(text)) if text[i : i + 3].isascii())
    want = text[: text.index(stop)]
    assert planform(*how, "--tokens", 0, "--stop", stop).stdout.rstrip("\n") == want.rstrip("\n")


@pytest.mark.parametrize("weights", ["int4", "w8", "int8"])
def test_quantised(run: Path, tmp_path: Path, weights: str) -> None:
    """As any other model: what it costs is measured, and kept under a budget; `verify` of the folder measures again."""
    (tmp_path / "text.txt").write_text(TEXT)

    def export(name: str, **wish: Any) -> dict[str, Any]:
        how = Wish(weights, block=32, **wish)  # type: ignore[arg-type]
        export_run(run, tmp_path / name, positions=POSITIONS, wish=how, calibrate=tmp_path / "text.txt")
        verdict = verify_contract(tmp_path / name)
        assert verdict.holds and verdict.metrics == {"logits": "kl"} and verdict.errors["logits"] > 0
        told: dict[str, Any] = json.loads((tmp_path / name / "contract.json").read_text())["quantization"]
        return told

    free = export("free")
    value = free["divergence"]["value"]
    assert value > 1e-7 and sum(free["weights"].values()) == MATRICES
    if weights == "int4":
        kept = export("kept", budget=0.8 * value)
        assert kept["divergence"]["value"] <= 0.8 * value
        assert any("int4" in kind for kind in kept["weights"]) and len(kept["weights"]) > 1


def test_for_genai_by_the_command(run: Path, tmp_path: Path) -> None:
    og = pytest.importorskip("onnxruntime_genai")
    out = tmp_path / "genai"
    assert planform("export", run, "--to", "genai", "--out", out, "--positions", 64).exit_code == 0
    assert verify_contract(out).holds
    settings = og.GeneratorParams(model := og.Model(str(out)))
    settings.set_search_options(max_length=64, batch_size=1)
    generator = og.Generator(model, settings)
    ids = np.arange(40, 75, dtype=np.int32)
    generator.append_tokens(ids)
    np.testing.assert_allclose(generator.get_logits()[0, 0], logits(run, ids[None])[0, -1], atol=1e-4)
