"""Fields through the one trainer: fitting inside a step, metrics, accumulation, resuming, more steps at test time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from planform.runtime.data import grid
from planform.runtime.evaluate import evaluate_run
from planform.runtime.metrics import read_metrics
from planform.runtime.train import train
from planform.spec import load

TINY = ("width=24", "depth=3", "rows=2", "columns=2", "features=4", "rate=0.003", "train.batch=8",
        "train.evaluate.every=60", "train.evaluate.batches=2")  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blobs of several sizes and places, 6 x 8: smooth, and no two alike."""
    rng = np.random.default_rng(0)
    points = grid(6, 8)
    middle, width = rng.uniform(0.1, 0.9, (120, 1, 2)), rng.uniform(0.1, 0.4, (120, 1))
    blobs = np.exp(-np.square(points - middle).sum(-1) / width**2).reshape(120, 6, 8)
    path: Path = tmp_path_factory.mktemp("blobs") / "blobs.npz"
    np.savez(path, images=blobs)
    return path


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("run") / "spatial"
    train(load("spatial_functa", "small", TINY), folder, overrides=TINY, files=images, steps=120, quiet=True)
    return folder


def test_signals_it_never_saw_are_rendered_better_and_better(run: Path) -> None:
    lines = [line for line in read_metrics(run) if "psnr" in line]
    assert [line["step"] for line in lines] == [60, 120]
    first, last = (line["psnr"] for line in lines)
    assert last > first > 10 and last > 20
    # A mean of logarithms lies beyond the logarithm of the mean.
    assert all(line["psnr"] >= -10 * np.log10(line["heldout_loss"]) for line in lines)


def test_more_steps_at_test_time(run: Path) -> None:
    """By an override: the loop is the same, and nothing of it is in the parameters but the rates."""
    as_trained = evaluate_run(run)
    assert as_trained["psnr"] == pytest.approx(read_metrics(run)[-1]["psnr"], abs=1e-3)
    none = evaluate_run(run, overrides=("train.inner.rates=0.0",))
    one, more = (evaluate_run(run, overrides=(f"train.inner.steps={n}",)) for n in (1, 6))
    assert none["psnr"] < one["psnr"] < as_trained["psnr"]
    assert more["psnr"] != pytest.approx(as_trained["psnr"], abs=1e-2)


@pytest.mark.slow
def test_in_parts_and_killed_halfway_it_is_the_same_run(images: Path, tmp_path: Path) -> None:
    # A rate of its own for all steps: a cosine's end would move with the number of them.
    spec = load("spatial_functa", "small", (*TINY, "train.checkpoint.every=3", "train.optimizer=adam(rate, clip=1.0)"))

    def losses(folder: str, accumulate: int = 1, stops: tuple[int, ...] = (6,)) -> np.ndarray:
        for steps in stops:
            train(spec, tmp_path / folder, files=images, steps=steps, accumulate=accumulate, quiet=True)
        return np.asarray([line["loss"] for line in read_metrics(tmp_path / folder) if "loss" in line])

    whole = losses("whole")
    assert len(whole) == 6 and np.array_equal(losses("resumed", stops=(3, 6)), whole)
    np.testing.assert_allclose(losses("parts", accumulate=4), whole, rtol=2e-4)


@pytest.mark.slow
def test_on_several_devices_and_by_the_command_line(images: Path, tmp_path: Path) -> None:
    found = {}
    for mesh in ("data=1", "data=4"):
        command = ["train", "spatial_functa", "--files", str(images), "--out", str(tmp_path / mesh), "--steps", "5",
                   "--mesh", mesh, "--quiet", "--json", *(w for o in TINY for w in ("--set", o))]  # fmt: skip
        done = subprocess.run([sys.executable, "-c", "from planform.runtime.cli import main; main()", *command],
                              capture_output=True, text=True, timeout=300)  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[mesh] = json.loads(done.stdout)
    for key in ("loss", "heldout_loss", "psnr"):
        assert found["data=4"][key] == pytest.approx(found["data=1"][key], rel=1e-3)
