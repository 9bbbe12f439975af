"""A distilled step is the same on every mesh, and the teacher is split by its own spec's rules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tests.runtime.training import corpus, finish, start, write_distillation

from planform.runtime.train import train
from planform.spec import load


def test_the_mesh_makes_no_difference(tmp_path: Path) -> None:
    write_distillation(tmp_path)
    text = corpus(tmp_path / "text")
    train(load(tmp_path / "teacher.yaml"), tmp_path / "teacher", files=text, mesh={"data": 1}, steps=1, quiet=True)
    job = {"folder": str(tmp_path), "spec": str(tmp_path / "student.yaml"), "teacher": str(tmp_path / "teacher"),
           "meshes": ["data=1", "data=2", "fsdp=2"], "steps": 3}  # fmt: skip
    found = finish(start(job, 2))
    want = np.array(found["data=1"]["losses"])
    assert want[-1] < want[0]
    for mesh in ("data=2", "fsdp=2"):
        np.testing.assert_allclose(found[mesh]["losses"], want, rtol=1e-5)
    # The teacher keeps `d` whole and splits `ff`: three of its matrices a layer, of all it holds.
    whole = found["data=1"]["frozen_bytes"]["0"]
    assert set(found["data=2"]["frozen_bytes"].values()) == {whole}
    layers, d, ff = 2, 24, 32
    assert set(found["fsdp=2"]["frozen_bytes"].values()) == {whole - 4 * layers * 3 * d * ff // 2}
