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
from planform.runtime.mesh import provide_devices
provide_devices(8)
from tests.benchmarks.d4pg import ByHand, ours

EVERY = ["train.targets.slow_actor=copy(actor, every=3)", "train.targets.slow_critic=copy(critic, every=3)"]
TINY = ["height=12", "width=16", "filters=4", "features=8", "policy_width=16", "policy_depth=8", "value_width=16",
        "value_depth=8"]


def told(arrays):
    return {n: np.asarray(a, float).ravel().tolist() for n, a in arrays.items()}


def go(model, devices, steps, overrides):
    trainer = ours(model, devices, *EVERY, *overrides)
    names = sorted({p.path for u in trainer.program.updates for p in u.loss.parameters})
    first, batches = trainer.state.logical(names), trainer.data.batches()
    for _ in range(steps):
        trainer._step(batches)
    return trainer, first, trainer.state.logical(names)


found = {}
for model, steps, overrides in ("d4pg", 10, ["train.batch=64"]), ("d4pg_pixels", 4, ["train.batch=16", *TINY]):
    for devices in (1, 8):
        trainer, first, found[f"{model} {devices}"] = go(model, devices, steps, overrides)
        found[f"{model} first"] = first
    if model == "d4pg":
        hand, batches = ByHand(first, every=3), trainer.data.batches()
        for _ in range(steps):
            hand.state, _ = hand.step(hand.state, next(batches))
        found["hand"] = hand.state[0] | hand.state[1]
json.dump({k: told(v) for k, v in found.items()}, sys.stdout)
"""


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, list[float]]]:
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def apart(found: dict[str, dict[str, list[float]]], a: str, b: str, first: str) -> float:
    """How far two trajectories are apart at their ends, as a part of how far they went."""
    between = max(np.abs(np.subtract(found[a][n], found[b][n])).max() for n in found[first])
    went = min(np.abs(np.subtract(found[a][n], found[first][n])).max() for n in found[first])
    return float(between / went)


def test_the_learner_is_the_one_written_with_rlax(found) -> None:
    """Ten steps, targets copied after three, six and nine."""
    assert found["hand"].keys() == found["d4pg 1"].keys()
    assert apart(found, "d4pg 1", "hand", "d4pg first") < 1e-3


@pytest.mark.parametrize("model", ["d4pg", "d4pg_pixels"])
def test_one_replica_and_eight_go_the_same_way(found, model: str) -> None:
    assert apart(found, f"{model} 8", f"{model} 1", f"{model} first") < 1e-3
