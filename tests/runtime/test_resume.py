"""Killed anywhere and started again, a run ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tests.runtime.training import LIGHT, ROOT, Losses, compiled_once, corpus, digest, finish, start, trainer

from planform.compiler.parameters import scatter
from planform.runtime.checkpoint import steps
from planform.runtime.errors import UserError

STEPS = 12
JOB = {"meshes": ["data=2"], "steps": STEPS, "save": True, "overrides": ["layers=2"], "checkpoint_every": 3}


def run(folder, job=None, **more):
    """A run in a process of its own with two devices; None where it was killed."""
    corpus(folder / "text")
    child = start({"folder": str(folder), "text": LIGHT, **JOB, **more}, 2)
    out, err = child.communicate(timeout=300)
    if child.returncode == -signal.SIGKILL:
        return None
    assert child.returncode == 0, err
    return json.loads(out)["data=2"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def undisturbed(shared):
    return run(shared / "undisturbed")


def fresh(shared, name):
    """A folder for a run that needn't compile what others have compiled."""
    folder = shared / name
    folder.mkdir()
    compiled = shared / "undisturbed" / "compiled"
    if compiled.exists():
        (folder / "compiled").symlink_to(compiled)
    return folder


@pytest.mark.parametrize("point, saved", [("before 6", 3), ("after 9", 9)])
def test_killed_in_a_save(shared, undisturbed, point, saved):
    folder = fresh(shared, point.replace(" ", "-"))
    assert run(folder, kill=point) is None
    assert steps(folder / "run")[-1] == saved
    again = run(folder)
    assert again["steps"] == list(range(saved + 1, STEPS + 1))
    assert again["losses"] == undisturbed["losses"][saved:]
    assert again["digest"] == undisturbed["digest"]


@pytest.mark.slow
def test_another_seed_ends_elsewhere(shared, undisturbed):
    assert run(fresh(shared, "seed"), seed=1)["digest"] != undisturbed["digest"]


@pytest.mark.slow
def test_killed_anywhere_again_and_again(shared, undisturbed):
    folder = fresh(shared, "anywhere")
    for _ in range(3):
        step = max([*steps(folder / "run"), 0]) + random.randint(1, 3)
        assert run(folder, kill=f"step {step} {random.randint(0, 30)}") is None
    found = run(folder)
    assert found["steps"][-1] == STEPS and found["digest"] == undisturbed["digest"]


def test_sigterm_saves(shared, undisturbed):
    folder = fresh(shared, "sigterm")
    corpus(folder / "text")
    child = start({"folder": str(folder), "text": LIGHT, **JOB, "checkpoint_every": 1000, "steps": 100000}, 2)
    deadline = time.monotonic() + 120
    while not (folder / "run" / "checkpoints").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.0)
    child.send_signal(signal.SIGTERM)
    found = finish(child)["data=2"]
    assert found["signal"] == signal.SIGTERM
    assert steps(folder / "run") == ([found["steps"][-1]] if found["steps"] else [])


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    with compiled_once(tmp_path_factory.mktemp("compiled")):
        yield


def light(folder, layers=2, unroll=1, **options):
    overrides = [f"layers={layers}"]
    return trainer(folder, text=LIGHT, save=True, overrides=overrides, unroll=unroll, checkpoint_every=2, **options)


def test_onto_another_grouping_of_layers(tmp_path, once):
    with light(tmp_path, layers=5, unroll=1) as t:
        t.run(2)
        before = {n: np.asarray(a) for n, a in t.state.named().items()}
    with light(tmp_path, layers=5, unroll=2) as t:
        assert t.state.step == 2
        after = {n: np.asarray(a) for n, a in t.state.named().items()}
    assert set(before) != set(after)
    assert digest(logical(before)) == digest(logical(after))
    assert "train/adam/mu/lm.layer[4].feed.glu.up.weight" in logical(after)


def logical(arrays):
    out = {}
    for name, array in arrays.items():
        prefix, _, stored = name.rpartition("/")
        out.update({f"{prefix}/{n}": a for n, a in scatter({stored: array}).items()})
    return out


@pytest.mark.parametrize("change, said", [({"seed": 1}, "seed"), ({"batch": 4}, "batch")])
def test_another_run_is_not_gone_on_with(tmp_path, once, change, said):
    with light(tmp_path) as t:
        t.run(2)
    with pytest.raises(UserError, match=said):
        light(tmp_path, **change)
    with light(tmp_path) as t:  # the lock was let go
        assert t.state.step == 2


def test_another_model_is_refused_by_name(tmp_path, once):
    with light(tmp_path) as t:
        t.run(2)
    wider = LIGHT.replace("glu(ff", "glu(2 * ff")
    plain = LIGHT.replace("adamw(", "sgd(").replace(", weight_decay=0.1", "")
    for text, said in ((wider, r"glu\.gate\.weight is float32\[.*64\]"), (plain, "model has no train/adam")):
        with pytest.raises(UserError, match=said):
            trainer(tmp_path, text=text, save=True, overrides=["layers=2"], unroll=1)


def test_nothing_is_left_to_do(tmp_path, once):
    with light(tmp_path, steps=2) as t:
        first = t.run()
    seen = Losses()
    with light(tmp_path, steps=2, observer=seen) as t:
        again = t.run()
    assert again.step == 2 and not seen.steps
    assert again.values["heldout_loss"] == first.values["heldout_loss"]


@pytest.mark.slow
def test_command_line_goes_on(tmp_path):
    corpus(tmp_path / "text")
    spec = tmp_path / "tiny.yaml"
    spec.write_text(LIGHT.replace("layers: 3", "layers: 1"))
    command = [
        "train",
        str(spec),
        "--out",
        str(tmp_path / "out"),
        "--files",
        str(tmp_path / "text"),
        "--mesh",
        "data=1",
    ]

    def planform(*more):
        return subprocess.run(
            [sys.executable, "-m", "planform", *command, "--json", *more],
            env={**os.environ, "PYTHONPATH": str(ROOT / ".pkg")},
            capture_output=True,
            text=True,
            timeout=300,
        )

    for steps_, expected in ((4, 4), (6, 6)):
        done = planform("--steps", str(steps_))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["step"] == expected
    assert "going on from step 4" in done.stderr
    assert planform("--fresh").returncode == 2
