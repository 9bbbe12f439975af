"""The shipped student: it checks, its loss is that of the paper, and it trains."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.tiny_run import TINY, tiny_run
from tests.runtime.training import corpus

from planform.backends.reference import run
from planform.compiler.check import check
from planform.compiler.elaborate import elaborate
from planform.compiler.parameters import initial
from planform.compiler.program import program
from planform.runtime.train import train
from planform.runtime.uses import all_parameters
from planform.spec import load

SMALL = ("d=8", "ff=12", "heads=2", "kv_heads=1", "head_dim=4", "query_scale=4", "window=4")


@pytest.mark.parametrize("mesh", [None, {"data": 2, "fsdp": 2}])
def test_it_checks(mesh: dict[str, int] | None) -> None:
    assert not [d for d in check(load("gemma2_distilled"), mesh) if d.severity == "error"]


def test_its_loss_is_the_cross_entropy_between_two_models() -> None:
    """-sum over the vocabulary of P_teacher log P_student, a mean over all tokens (arXiv:2408.00118, section 3.2)."""
    spec = load("gemma2_distilled", overrides=[*SMALL, "vocab=256"])
    (update,) = program(spec).updates
    weights = initial(update.loss.parameters, seed=1)
    inputs = {"tokens": np.random.default_rng(0).integers(0, 256, (2, 9))}
    own = {n: a for n, a in weights.items() if not n.startswith("teacher.")}
    theirs = {n.removeprefix("teacher."): a for n, a in weights.items() if n.startswith("teacher.")}
    student = run(elaborate(spec), own, inputs)["logits"]
    teacher = run(elaborate(spec.uses["teacher"].spec), theirs, inputs)["logits"]
    p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (teacher, student))
    assert run(update.loss, weights, inputs)["loss"] == pytest.approx(-(p * np.log(q)).sum(-1).mean(), rel=1e-9)
    assert not any(p.frozen for p in update.heldout.parameters)  # what is measured is the text


def test_it_trains_a_few_steps(tmp_path: Path) -> None:
    teacher = tiny_run(tmp_path / "teacher")
    (tmp_path / "teacher.yaml").write_text("planform: 1\nextends: gemma2@small\nmodel: t\ndims: {"
                                           + ", ".join(d.replace("=", ": ") for d in TINY) + "}\n")  # fmt: skip
    file = tmp_path / "student.yaml"
    file.write_text("planform: 1\nextends: gemma2_distilled\nmodel: s\nuses: {teacher: teacher.yaml}\n")
    settings = [*SMALL, "rate=0.01", "train.data=text(tokens, length=16)", "train.batch=4", "train.evaluate.batches=2"]
    spec = load(file, overrides=settings)
    result = train(spec, tmp_path / "run", overrides=settings, files=corpus(tmp_path / "text"), mesh={"data": 1},
                   steps=12, quiet=True, uses={"teacher": teacher})  # fmt: skip
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert result.step == 12 and "bits_per_byte" in result.values
    assert result.values["loss"] < first
    assert "teacher.table" not in all_parameters(tmp_path / "run", spec, [], {})
