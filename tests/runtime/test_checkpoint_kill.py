"""A process killed anywhere in a save: nothing saved is lost, nothing unfinished is taken for whole."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from planform.runtime.checkpoint import read_arrays, read_meta, steps

PACKAGE = str(Path(__file__).parents[2] / ".pkg")
KEEP = 2

CHILD = """
import os, signal, sys, threading
from pathlib import Path
import jax.numpy as jnp
import numpy as np
from planform.runtime.checkpoint import Checkpoints

folder, point, delay = sys.argv[1], sys.argv[2], float(sys.argv[3])
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
checkpoints = Checkpoints(folder, keep=%d)
assert all(name.isdigit() for name in os.listdir(Path(folder, "checkpoints")))
first = (checkpoints.latest() or 0) + 1

def rename(source, target, *, original=os.rename, **options):
    name = os.path.basename(target)
    if point == "before it is whole" and name == str(first + 2):
        die()
    original(source, target, **options)
    if point == "after it is whole" and name == str(first + 2):
        die()
    if point == "while an old one goes" and name.endswith(".deleted"):
        die()
os.rename = rename

if point == "anywhere":
    threading.Timer(delay, die).start()
with checkpoints:
    for step in range(first, first + 1000):
        rng = np.random.default_rng(step)
        arrays = {"w": rng.standard_normal((40, 50)), "b": rng.integers(0, 9, 7)}
        checkpoints.save(step, arrays, {"step": step})
        print(step, flush=True)  # the saves before this one are on disk
"""


def run(folder: Path, point: str, delay: float = 0.0) -> int:
    """Runs a child until it kills itself; returns the last step whose save it began."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD % KEEP, str(folder), point, str(delay)],
        env=os.environ | {"PYTHONPATH": PACKAGE},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert child.returncode == -9, child.stderr
    return int(child.stdout.split()[-1]) if child.stdout else 0


def check(folder: Path, begun: int) -> None:
    there = steps(folder)
    assert begun - 1 <= max(there, default=0) <= begun + 1
    assert len(there) >= min(KEEP, begun - 1)
    for step in there:
        rng = np.random.default_rng(step)
        arrays = read_arrays(folder, step)
        assert arrays["w"].tobytes() == rng.standard_normal((40, 50)).tobytes()
        assert np.array_equal(arrays["b"], rng.integers(0, 9, 7))
        assert read_meta(folder, step) == {"step": step}


def test_killed_at_the_worst_points(tmp_path):
    run(tmp_path, "before it is whole")
    assert steps(tmp_path) == [1, 2]
    assert any("tmp" in name for name in os.listdir(tmp_path / "checkpoints"))
    check(tmp_path, 3)
    run(tmp_path, "after it is whole")
    assert steps(tmp_path)[-1] == 5
    check(tmp_path, 5)
    begun = run(tmp_path, "while an old one goes")
    assert any(name.endswith(".deleted") for name in os.listdir(tmp_path / "checkpoints"))
    check(tmp_path, begun)


@pytest.mark.parametrize("kill", range(3))
def test_killed_anywhere(tmp_path, kill):
    delay = random.uniform(0.05, 0.6)
    check(tmp_path, run(tmp_path, "anywhere", delay))
