"""Weights laid out for this machine: the same results, and only while all is as it was when they were laid out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from planform.backends.onnx import Scheme, Session, discard, load, prepare, prepared
from planform.backends.onnx.session import options

from .onnx_models import tokens
from .test_onnx_quantize import tiny


def logits(folder: Path, packed: bool = True) -> np.ndarray:
    session = Session(folder, packed=packed)
    session.reset(2, 64)
    return session.prefill(tokens(2, 40))


def loaded(folder: Path, packed: bool = True) -> str:
    return Path(load(folder, options(packed=packed))._model_path).name


def test_settings_of_the_users_own_will_do(tmp_path: Path) -> None:
    folder, *_ = tiny(tmp_path, Scheme("int4", 32))
    prepare(folder)
    assert Path(load(folder, ort.SessionOptions())._model_path).name == "prepared.onnx"


@pytest.mark.parametrize("scheme", [None, Scheme("int4", 32), Scheme("int8")])
def test_the_same_results_to_the_bit(scheme: Scheme | None, tmp_path: Path) -> None:
    folder, *_ = tiny(tmp_path, scheme)
    want, before = logits(folder), {p.name for p in folder.iterdir()}
    size = prepare(folder)
    added = {p.name: p.stat().st_size for p in folder.iterdir() if p.name not in before}
    assert set(added) == {"prepared.onnx", "prepared.onnx.data", "prepared.json"} and sum(added.values()) == size
    assert loaded(folder) == "prepared.onnx" and loaded(folder, packed=False) == "model.onnx"
    assert np.array_equal(logits(folder), want)
    discard(folder)
    assert {p.name for p in folder.iterdir()} == before


@pytest.mark.parametrize("what", ["processor", "runtime", "model", "weights", "prepared", "stamp", "no stamp"])
def test_nothing_is_taken_that_may_not_fit(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, *_ = tiny(tmp_path, Scheme("int4", 32))
    prepare(folder)
    assert loaded(folder) == "prepared.onnx"
    stamp = folder / "prepared.json"
    if what == "processor":
        monkeypatch.setattr(prepared, "processor", lambda: "another")
    elif what == "runtime":
        told = json.loads(stamp.read_text())
        stamp.write_text(json.dumps({**told, "onnxruntime": "1.0.0"}))
    elif what == "stamp":
        stamp.write_text(stamp.read_text()[:-9])
    elif what == "no stamp":
        stamp.unlink()
    else:
        name = {"model": "model.onnx", "weights": "model.onnx.data", "prepared": "prepared.onnx.data"}[what]
        os.utime(folder / name, (1, 1))
    assert loaded(folder) == "model.onnx"


def test_another_model_takes_its_place(tmp_path: Path) -> None:
    folder, *_ = tiny(tmp_path, Scheme("int4", 32))
    prepare(folder)
    (folder / "mine.txt").write_text("stays")
    tiny(tmp_path, None)
    assert loaded(folder) == "model.onnx" and (folder / "mine.txt").exists()
    assert not list(folder.glob("prepared*"))


def test_nothing_is_left_of_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, *_ = tiny(tmp_path, None)
    before = {p.name for p in folder.iterdir()}

    def full(path: str, settings: object, **_: object) -> None:
        (folder / "prepared.onnx.data").write_bytes(b"half of it")
        raise Exception("No space left on device")

    monkeypatch.setattr(prepared.ort, "InferenceSession", full)
    with pytest.raises(OSError, match=r"onnxruntime can't lay out model\.onnx: No space left"):
        prepare(folder)
    assert {p.name for p in folder.iterdir()} == before
