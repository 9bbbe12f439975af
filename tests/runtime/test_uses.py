"""The weights of a used spec: where they come from, that they stay the same, and that they are used and kept still."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.runtime.training import HARD, STUDENT, compiled_once, corpus, write_distillation

from planform.backends.reference import run as reference
from planform.compiler.program import program
from planform.runtime.checkpoint import read_meta
from planform.runtime.data import ByteTokenizer, JsonTokenizer
from planform.runtime.errors import UserError
from planform.runtime.evaluate import evaluate_run
from planform.runtime.run import parameters_of_run, read_run, spec_of_run
from planform.runtime.train import train
from planform.runtime.uses import Weights, all_parameters, parse_with
from planform.spec import load

ONE = {"data": 1}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with both specs, text, and the teacher's run."""
    folder = tmp_path_factory.mktemp("uses")
    write_distillation(folder)
    corpus(folder / "text")
    with compiled_once(folder / "compiled"):
        run(folder, "teacher", "teacher", steps=3)
        yield folder


def run(here: Path, spec: str, out: str, **more: Any) -> Any:
    text = {"files": here / "text", "mesh": ONE, "quiet": True}
    return train(load(here / f"{spec}.yaml"), here / out, **{**text, **more})


def distil(here: Path, out: str, **more: Any) -> Any:
    return run(here, "student", out, **{"steps": 2, "uses": {"teacher": here / "teacher"}, **more})


def test_a_distilled_run(here: Path) -> None:
    distil(here, "whole")
    told = read_run(here / "whole")["uses"]["teacher"]
    assert told["folder"] == str(here / "teacher") and told["step"] == 3 and told["spec"] == "teacher.yaml"
    # Nothing of the teacher is in the checkpoint, neither weights nor moments.
    assert not [n for n in read_meta(here / "whole")["arrays"] if "teacher" in n]
    assert set(parameters_of_run(here / "whole")) == {n for n in parameters_of_run(here / "teacher") if "[1]" not in n}


def test_the_loss_is_that_against_these_weights(here: Path) -> None:
    """What a step measures before it changes anything is the reference's loss with the teacher's weights in it."""
    from planform.backends.xla import Policy
    from planform.runtime.mesh import make_mesh, rules_of
    from planform.runtime.updates import Layout, Updates

    spec = load(here / "student.yaml")
    chosen = program(spec)
    weights = Weights("teacher", "teacher.yaml", here / "teacher", 3)
    for compute, dtype in (("f32", jnp.float32), ("bf16", jnp.bfloat16)):
        updates = Updates(chosen, Layout(make_mesh(ONE), rules_of(spec), Policy(compute=compute)))  # type: ignore[arg-type]
        frozen = updates.place_frozen(lambda path: weights.parameters[path.removeprefix("teacher.")])
        assert {a.dtype for a in frozen.values()} == {jnp.dtype(dtype)}  # in what is computed in, and the masters:
        own = updates.initialise(0)
        assert {a.dtype for a in own.values()} == {jnp.dtype(jnp.float32)}
        assert not set(own) & set(frozen) and all(n.startswith("teacher.") for n in frozen)
        if compute == "f32":
            batch = {"tokens": np.random.default_rng(0).integers(0, 256, (8, 16)).astype(np.int32)}
            batch |= {
                "position": np.tile(np.arange(16, dtype=np.int32), (8, 1)),
                "document": np.zeros((8, 16), np.int32),
            }
            found, weight = updates.each[0].measure(own, batch, frozen)
            from planform.backends.xla import to_logical

            logical = to_logical(own) | {f"teacher.{n}": a for n, a in weights.parameters.items()}
            want = reference(chosen.updates[0].heldout, logical, batch)["loss"]
            assert float(found["heldout_loss"] / weight) == pytest.approx(float(want), rel=1e-5)
            kept = {n: np.asarray(a) for n, a in frozen.items()}
            (update,) = updates.each
            state = update.initial({n: own[n] for n in update.trained})
            assert not any("teacher" in jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(state))
            after, _, metrics = update.step(own, state, batch, 1, frozen)
            assert set(after) == set(updates.storage) and float(metrics["gradient_norm"]) > 0
            assert all((np.asarray(frozen[n]) == kept[n]).all() for n in kept)


def test_a_run_goes_on_with_the_same_weights(here: Path, tmp_path: Path) -> None:
    distil(here, "half", steps=1)
    result = distil(here, "half", uses=None)  # found where they were
    whole = distil(here, "both")
    assert result.values["loss"] == whole.values["loss"]
    moved = here / "moved"
    shutil.copytree(here / "teacher", moved)
    distil(here, "half", uses={"teacher": moved}, steps=3)
    assert read_run(here / "half")["uses"]["teacher"]["folder"] == str(moved)
    shutil.rmtree(moved)
    with pytest.raises(UserError, match="were in .*moved, which is gone") as e:
        distil(here, "half", uses=None, steps=4)
    assert "--with teacher=RUN" in str(e.value.help)


def test_other_weights_are_refused(here: Path) -> None:
    distil(here, "kept", steps=1)
    run(here, "teacher", "other", steps=1, seed=9)
    with pytest.raises(UserError, match="holds other weights for `teacher` than those this run began with"):
        distil(here, "kept", uses={"teacher": here / "other"})
    # The teacher has learned on, but what this run began with is still there.
    later = here / "later"
    shutil.copytree(here / "teacher", later)
    distil(here, "on", steps=1, uses={"teacher": later})
    run(here, "teacher", "later", steps=4)
    assert distil(here, "on", uses=None).step == 2
    shutil.rmtree(later / "checkpoints" / "3")
    with pytest.raises(UserError, match="holds other weights"):
        distil(here, "on", uses=None, steps=3)


def test_what_is_missing_or_does_not_fit_is_said(here: Path, tmp_path: Path) -> None:
    def refused(said: str, **more: Any) -> None:
        with pytest.raises(UserError, match=said):
            distil(here, "none", **more)
        assert not (here / "none").joinpath("run.json").exists()

    refused("`teacher: teacher.yaml` comes without weights", uses={})
    refused("there is no .*nowhere", uses={"teacher": here / "nowhere"})
    refused("is not the folder of a training run", uses={"teacher": here / "text"})
    refused("uses no spec `techer`", uses={"techer": here / "teacher"})
    smaller = like_the_teacher(here, tmp_path / "smaller", ("layers: 2", "layers: 1"), ("d: 24", "d: 16"))
    said = "another model than `teacher: teacher.yaml`: d is 16 there and 24 here, layers is 1 there and 2 here"
    refused(said, uses={"teacher": smaller})
    # A cap is in no shape, and still makes another model.
    capped = like_the_teacher(here, tmp_path / "capped", ("softcap(30)", "softcap(20)"))
    refused("holds another model than `teacher: teacher.yaml`$", uses={"teacher": capped})


def like_the_teacher(here: Path, folder: Path, *changes: tuple[str, str]) -> Path:
    """A copy of the teacher's run that says it trained another spec."""
    shutil.copytree(here / "teacher", folder)
    told = json.loads((folder / "run.json").read_text())
    for old, new in changes:
        assert old in told["spec"]["text"]
        told["spec"]["text"] = told["spec"]["text"].replace(old, new)
    (folder / "run.json").write_text(json.dumps(told))
    return folder


def test_other_tokens_are_refused(here: Path, tmp_path: Path) -> None:
    strange = like_the_teacher(here, tmp_path / "strange")
    ByteTokenizer().save(tmp_path)
    file = tmp_path / "tokenizer.json"
    told = json.loads(file.read_text())
    told["model"]["vocab"] = {k: 255 - i for k, i in told["model"]["vocab"].items()}
    (strange / "tokenizer" / "tokenizer.json").write_text(json.dumps(told))
    assert JsonTokenizer(strange / "tokenizer").vocab_size == 256
    with pytest.raises(UserError, match="reads the tokens of .* and this run those of bytes"):
        distil(here, "none", uses={"teacher": strange})


def test_what_is_measured(here: Path, tmp_path: Path) -> None:
    """Bits per byte are those of the text: only a loss against the text gives them."""
    assert "bits_per_byte" not in distil(here, "soft", steps=1).values
    assert "bits_per_byte" not in evaluate_run(here / "soft")
    both = here / "both.yaml"
    both.write_text(STUDENT.replace("evaluate: {", f"evaluate: {{loss: '{HARD}', "))
    trained = run(here, "both", "text-loss", steps=1, uses={"teacher": here / "teacher"})
    found = evaluate_run(here / "text-loss")
    assert found["bits_per_byte"] == pytest.approx(trained.values["bits_per_byte"], rel=1e-5)
    # A loss that doesn't ask the teacher doesn't need it; one that does says so.
    assert set(all_parameters(here / "text-loss", spec_of_run(here / "text-loss"), [], {})) == set(
        parameters_of_run(here / "text-loss")
    )
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(here / "teacher", elsewhere)
    told = evaluate_run(here / "soft", uses={"teacher": elsewhere})
    assert told["heldout_loss"] == evaluate_run(here / "soft")["heldout_loss"]
    with_teacher = [u.loss for u in program(spec_of_run(here / "soft")).updates]
    assert "teacher.table" in all_parameters(here / "soft", spec_of_run(here / "soft"), with_teacher, {})


def test_options() -> None:
    assert parse_with(["a=x", "b=y=z"]) == {"a": Path("x"), "b": Path("y=z")}
    for texts in (["a"], ["=x"], ["a="], ["a=x", "a=y"]):
        with pytest.raises(UserError):
            parse_with(texts)
