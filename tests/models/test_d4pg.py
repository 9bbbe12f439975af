"""D4PG against the same learner by hand with rlax, and on one replica against eight."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("rlax")

RUN = """
import json, sys
import numpy as np
from planform.compiler.parameters import initial
from planform.runtime.mesh import provide_devices
provide_devices(8)
from tests.benchmarks.d4pg import ByHand, Repeated, ours

EVERY = ("train.targets.slow_actor=copy(actor, every=3)", "train.targets.slow_critic=copy(critic, every=3)")


def told(state, names):
    arrays = state.logical(names)
    return {n: a.astype(float).ravel().tolist() for n, a in arrays.items()}


source, found = Repeated(64), {}
for devices in (1, 8):
    trainer = ours(source, devices, *EVERY)
    names = sorted({n for u in trainer.program.updates for p in u.loss.parameters for n in [p.path]})
    first = trainer.state.logical(names)
    batches = source.batches()
    for _ in range(10):
        trainer._step(batches)
    found[f"ours {devices}"] = told(trainer.state, names)
hand = ByHand(first, every=3)
batches = source.batches()
for _ in range(10):
    hand.state, _ = hand.step(hand.state, next(batches))
found["hand"] = {n: np.asarray(a, float).ravel().tolist() for part in hand.state[:2] for n, a in part.items()}
found["first"] = {n: a.astype(float).ravel().tolist() for n, a in first.items()}
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, list[float]]]:
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def moved(found: dict[str, dict[str, list[float]]], a: str, b: str) -> float:
    """How far two trajectories are apart after ten steps, as a part of how far they went."""
    apart = max(np.abs(np.subtract(found[a][n], found[b][n])).max() for n in found["first"])
    went = min(np.abs(np.subtract(found[a][n], found["first"][n])).max() for n in found["first"])
    return apart / went


def test_the_learner_is_the_one_written_with_rlax(found) -> None:
    """Ten steps, targets copied after three, six and nine."""
    assert found["hand"].keys() == found["ours 1"].keys()
    assert moved(found, "ours 1", "hand") < 1e-3


def test_one_replica_and_eight_go_the_same_way(found) -> None:
    assert moved(found, "ours 8", "ours 1") < 1e-3
