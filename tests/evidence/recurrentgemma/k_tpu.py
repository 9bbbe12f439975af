"""The kernel and whole training steps, compiled ahead of time for TPUs that aren't here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.evidence import row
from tests.evidence.rows import Outcome

ROOT = Path(__file__).parents[3]
GIB = {"v5e": 15.75, "v5p": 95.7}
"""Of a chip's memory, what a program may have."""

KERNELS = ("v5e:2x2 kernel", "v5p:2x2x1 kernel")
STEPS = (
    "v5e:4x4 fsdp=8 tensor=2 batch=16 time=2048",
    "v5p:2x2x2 fsdp=2 seq=4 batch=4 time=8192",
)
CONTROL = "v5e:4x4 fsdp=8 tensor=2 batch=16 time=256 size=small form=associative"


def compiled(case: str) -> dict[str, Any]:
    """What `tests.backends.tpu_run` found."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT / '.pkg'}{os.pathsep}{ROOT}"}
    env.pop("XLA_FLAGS", None)
    command = [sys.executable, "-m", "tests.backends.tpu_run", case]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])[case]
    return found


@row(
    "recurrentgemma",
    "tpu_compile",
    "the kernel and whole bfloat16 training steps of 2b (split by fsdp, tensor and seq) compile ahead of time for v5e "
    "and v5p; both kernels are in the compiled programs, and the memory fits",
    8,
)
def tpu_compile() -> Outcome:
    import libtpu

    figure: dict[str, Any] = {"libtpu": libtpu.__version__}
    holds = True
    for case in (*KERNELS, *STEPS):
        found = compiled(case)
        found["collectives"] = {kind: sum(shapes.values()) for kind, shapes in found.pop("told").items()}
        figure[case] = found
        holds &= set(found["kernels"]) == {"linear_recurrence", "linear_recurrence_gradient"}
        holds &= sum(found["gib"].values()) <= GIB[case.partition(":")[0]]
    without = compiled(CONTROL)
    figure[CONTROL] = {"kernels": without["kernels"]}
    return figure, holds and not without["kernels"]
