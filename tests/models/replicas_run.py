"""TF-Replicator's three training programs, small and in float64, on any mesh and in any number of processes.

python -m tests.models.replicas_run d4pg FOLDER data=2 2

trains one of them in a process (or two) of its own; the agents from batches that are made up: which of their own they
have seen by a step no two runs agree on.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

PROGRAMS = {
    "resnet50": (4, "base=4", "classes=10", "colours=1", "n1=2", "n2=1", "n3=1", "n4=1", "train.batch=16",
                 "train.data=images(image, label, size=32, crop=0.5, flip=true, mean=0.3, std=0.3)",
                 "train.optimizer=sgd(0.05, momentum=0.9, nesterov=true, weight_decay=1e-4)",
                 "train.evaluate.batches=1"),
    "sngan_32": (3, "ch=4", "wide=4", "noise=8", "hold=100", "train.batch=8", "train.evaluate.batches=1"),
    "d4pg": (10, "policy_width=16", "policy_depth=8", "value_width=16", "value_depth=8", "train.batch=16",
             "train.targets.slow_actor=copy(actor, every=3)", "train.targets.slow_critic=copy(critic, every=3)"),
}  # fmt: skip
"""Steps and overrides of each. The agent's targets are copied several times on the way."""
PROGRAMS["d4pg_pixels"] = (*PROGRAMS["d4pg"], "height=12", "width=16", "filters=4", "features=8")

PLACES = {"eight devices": ("data=8", 1), "two processes": ("data=4", 2)}
"""Meshes and numbers of processes that must end where one device does."""

Arrays = dict[str, np.ndarray]


def apart(model: str, folder: Path) -> dict[str, float]:
    """How far the ends of equal runs are from that of one device, as a part of how far it went.

    Raises: RuntimeError.
    """
    from planform.compiler.parameters import initial
    from planform.compiler.program import program
    from planform.spec import load

    one = trained(model, folder / "one device", "data=1", 1)
    updates = program(load(model, overrides=PROGRAMS[model][1:])).updates
    first = initial(p for u in updates for p in u.loss.parameters)
    way = max(np.abs(one[n] - a).max() for n, a in first.items())
    found = {}
    for name, (mesh, processes) in PLACES.items():
        other = trained(model, folder / name, mesh, processes)
        assert other.keys() == one.keys()
        found[name] = float(max(np.abs(other[n] - a).max() for n, a in one.items()) / way)
    return found


def trained(model: str, folder: Path, mesh: str, processes: int) -> Arrays:
    """What such a run changes, at its end: parameters, buffers, slow copies."""
    from planform.runtime.run import parameters_of_run

    command = [sys.executable, "-m", "tests.models.replicas_run", model, str(folder), mesh, str(processes)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return dict(parameters_of_run(folder))


def pictures(file: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(file, images=rng.integers(0, 256, (64, 28, 28, 1), np.uint8), labels=rng.integers(0, 10, 64))
    return file


def main(model: str, folder: str, mesh: str, processes: str) -> int:
    from tests.benchmarks.d4pg import Repeated

    from planform.runtime import distributed, opening
    from planform.runtime.mesh import parse_mesh
    from planform.runtime.train import train
    from planform.spec import load

    if (code := distributed.begin(int(processes))) is not None:
        return code
    opening.OPENERS = {**opening.OPENERS, "replay": lambda asked: Repeated(asked.program, share=asked.share)}
    steps, *overrides = PROGRAMS[model]
    files = None if model.startswith("d4pg") else pictures(Path(folder).parent / "pictures.npz")
    train(load(model, overrides=(*overrides, "precision.compute=float64")), folder, files=files, steps=steps,
          mesh=parse_mesh(mesh), quiet=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
