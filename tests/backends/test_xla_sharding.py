"""The same numbers on any mesh, and parameters that are really split."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .sequence_run import RUNS, numbers

ROOT = Path(__file__).parents[2]


def run(module: str, devices: int, *arguments: str) -> Any:
    """The last line that a module prints in a process of its own, which has so many devices."""
    env = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{ROOT / '.pkg'}{os.pathsep}{ROOT}",
    }
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_mesh_gives_what_one_device_gives() -> None:
    found = run("tests.backends.sharded_run", 4)
    for mesh, r in found.items():
        assert r["difference"] < 1e-10, (mesh, r)
    assert found["data=4"]["share"] == 1
    assert found["data=2 fsdp=2"]["share"] == 0.5
    assert found["fsdp=2 tensor=2"]["share"] == 0.25


def gathered(found: Any) -> list[tuple[int, ...]]:
    """Shapes of what every device gets of all others."""
    every = found["told"].get("all-gather", {}) | found["told"].get("all-to-all", {})
    return [tuple(numbers(shape)) for shape in every]


def test_a_recurrence_split_over_devices() -> None:
    cases = [f"{name} seq=4 tensor=2 time={time}" for name in RUNS for time in (24, 21)]  # 21 can't be shared evenly
    for case, r in run("tests.backends.sequence_run", 8, *cases).items():
        assert r["difference"] < 1e-12, (case, r)
        if case.endswith("24"):
            # Of each of the four parts: its product and its last entry, two rows and three channels a device.
            assert set(gathered(r)) == {(4, 2, 3)}, (case, r)


@pytest.mark.slow
def test_a_model_whose_sequences_are_split() -> None:
    cases = [
        "seq=8 time=512",
        "seq=8 time=256",
        "data=2 seq=2 tensor=2 time=64 form=kernel",
        "seq=4 time=61 form=associative",
    ]
    found = run("tests.backends.sequence_run", 8, *(f"recurrentgemma {case}" for case in cases))
    for case, r in zip(cases, found.values(), strict=True):
        assert r["difference"] < (1e-6 if "kernel" in case else 1e-12), (case, r)
        assert r["told"]["collective-permute"], "a convolution and a window need what is across the edge"
    long, short, *_ = found.values()
    assert short["bytes"] == long["bytes"], "devices tell each other nothing that grows with a sequence"
