"""A child: D4PG's learner on one device and on eight, from states and from pictures, and by hand with rlax, from equal
beginnings; how far they are apart after some steps, as JSON.

python -m tests.models.d4pg_run
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

EVERY = ("train.targets.slow_actor=copy(actor, every=3)", "train.targets.slow_critic=copy(critic, every=3)")
SMALL = ("height=12", "width=16", "filters=4", "features=8", "policy_width=16", "policy_depth=8", "value_width=16",
         "value_depth=8", "train.batch=16")  # fmt: skip

Arrays = Mapping[str, Any]


def measured() -> dict[str, float]:
    """What the child says."""
    done = subprocess.run([sys.executable, "-m", "tests.models.d4pg_run"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def apart(a: Arrays, b: Arrays, first: Arrays) -> float:
    """How far two ends are apart, as a part of how far they are from the beginning."""
    assert a.keys() == b.keys() == first.keys()
    between = max(np.abs(np.subtract(a[n], b[n])).max() for n in first)
    return float(between / min(np.abs(np.subtract(a[n], first[n])).max() for n in first))


def main() -> None:
    from planform.runtime.mesh import provide_devices

    provide_devices(8)

    from tests.benchmarks.d4pg import ByHand, ours

    def go(devices: int, steps: int, model: str, *overrides: str) -> tuple[Arrays, Arrays, Any]:
        trainer = ours(model, devices, *EVERY, *overrides)
        names = sorted({p.path for u in trainer.program.updates for p in u.loss.parameters})
        first, batches = trainer.state.logical(names), trainer.data.batches()
        for _ in range(steps):
            trainer._step(batches)
        return first, trainer.state.logical(names), trainer.data

    found = {}
    for model, steps, overrides in ("d4pg", 10, ("train.batch=64",)), ("d4pg_pixels", 4, SMALL):
        first, one, data = go(1, steps, model, *overrides)
        _, eight, _ = go(8, steps, model, *overrides)
        found[f"{model}: eight devices, one"] = apart(eight, one, first)
        if model == "d4pg":
            hand, batches = ByHand(first, every=3), data.batches()
            for _ in range(steps):
                hand.state, _ = hand.step(hand.state, next(batches))
            found["ours, by hand"] = apart(one, hand.state[0] | hand.state[1], first)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
