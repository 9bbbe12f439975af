"""From a spec to a folder: what is refused before anything compiles, and what the folder says afterwards."""

import json

import jax
import numpy as np
import pytest
from tests.runtime.training import LIGHT, compiled_once, corpus

from planform.runtime.errors import UserError
from planform.runtime.run import parameters_of_run, read_run, spec_of_run
from planform.runtime.train import train
from planform.spec import SpecError, load_text

ONE = {"data": 1}


def loaded(text=LIGHT, *overrides):
    return load_text(text, overrides=("layers=2", *overrides))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    with compiled_once(tmp_path_factory.mktemp("compiled")):
        yield


def test_a_run_describes_itself(tmp_path, text, once):
    spec = loaded()
    result = train(spec, tmp_path / "out", overrides=["layers=2"], files=text, mesh=ONE, steps=3, quiet=True)
    assert result.step == 3 and result.exit_code == 0 and "bits_per_byte" in result.values
    told = read_run(tmp_path / "out")
    assert (told["steps"], told["batch"], told["mesh"], told["compute"]) == (3, 8, "data=1", "f32")
    again = spec_of_run(tmp_path / "out")
    assert again.source.text == spec.source.text and set(again.dims) == set(spec.dims)
    assert str(again.dims["layers"].value) == str(spec.dims["layers"].value)
    parameters = parameters_of_run(tmp_path / "out")
    assert parameters["table"].shape == (256, 16) and "lm.layer[1].feed.glu.up.weight" in parameters
    assert not any("adam" in name for name in parameters)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 3]
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"run.json", "checkpoints", "tokenizer", "data"}
    with pytest.raises(UserError, match="a run in .* already"):
        train(spec, tmp_path / "out", files=text, mesh=ONE, resume=False)


def test_float64(tmp_path, text, once):
    try:
        train(loaded(), tmp_path, files=text, mesh=ONE, steps=1, precision="float64", quiet=True)
    finally:
        jax.config.update("jax_enable_x64", False)
    assert {a.dtype for a in parameters_of_run(tmp_path).values()} == {np.dtype("float64")}


@pytest.mark.parametrize("options, said", [
    ({"precision": "float8"}, "float8"),
    ({"mesh": {"data": 3}}, "batch of 8"),
    ({"mesh": {"pipe": 2}}, "`pipe`"),
    ({"mesh": {"data": 2, "fsdp": 4, "tensor": 8}}, "64 devices|`"),
    ({"files": "/nowhere/at/all"}, "/nowhere/at/all"),
    ({"tokenizer": "/nowhere/at/all"}, "/nowhere/at/all"),
    ({"length": 1}, "1"),
])  # fmt: skip
def test_mistakes_are_told_before_anything_compiles(tmp_path, text, options, said, monkeypatch):
    monkeypatch.setattr("planform.runtime.train.Trainer", None)
    with pytest.raises((UserError, SpecError), match=said):
        train(loaded(), tmp_path / "out", **{"files": text, "mesh": ONE, **options})
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_the_vocabulary_must_fit_the_table(tmp_path, text):
    with pytest.raises(UserError, match="256 tokens, the model's table 100") as fault:
        train(loaded(LIGHT, "vocab=100"), tmp_path, files=text, mesh=ONE)
    assert fault.value.help == "--set vocab=256"


@pytest.mark.parametrize("precision, said", [
    ("{compute: float16}", "compute in float16"),
    ("{parameters: bfloat16, compute: bfloat16}", "trained in bfloat16"),
])  # fmt: skip
def test_precision_that_cannot_train(tmp_path, text, precision, said):
    with pytest.raises(SpecError, match=said) as fault:
        train(loaded(LIGHT + f"precision: {precision}\n"), tmp_path, files=text, mesh=ONE)
    (found,) = fault.value.diagnostics
    assert found.code == "PF0511" and found.span.source.line(found.span.line).startswith("precision:")


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match="not the folder of a training run"):
        read_run(tmp_path)
    for text, said in (("{", "damaged"), ('{"version": 99}', "another version")):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(UserError, match=said):
            read_run(tmp_path)
