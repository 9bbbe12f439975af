"""The same numbers on any mesh, and parameters that are really split."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .sequence_run import CASES, DIMS, RUNS

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


def gathered(found: Any) -> list[list[int]]:
    """Shapes of what every device gets of all others."""
    every = found["told"].get("all-gather", {}) | found["told"].get("all-to-all", {})
    return [[int(n) for n in re.findall(r"\d+", shape.partition("[")[2])] for shape in every]


def test_a_recurrence_split_over_devices() -> None:
    found = run("tests.backends.sequence_run", 8, *RUNS)
    for name, r in found.items():
        assert r["difference"] < 1e-12, (name, r)
        # Of each of the four parts: its product and its last entry, two rows and three channels a device.
        assert set(map(tuple, gathered(r))) == {(4, 2, 3)}, (name, r)


@pytest.mark.slow
def test_a_model_whose_sequences_are_split() -> None:
    found = run("tests.backends.sequence_run", 8, *CASES)
    for name, r in found.items():
        assert r["difference"] < (1e-6 if CASES[name][2] == "kernel" else 1e-12), (name, r)
        time, width = CASES[name][1], DIMS["lru"]
        whole = [s for s in gathered(r) if max(s) >= time and s[-1] in (width, width // 2)]
        assert not whole, f"{name}: the recurrence's sequence is gathered, {whole}"
        assert r["told"]["collective-permute"], "a convolution needs what is across the edge"
