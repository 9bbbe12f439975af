"""The same numbers on any mesh, and parameters that are really split."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_mesh_gives_what_one_device_gives() -> None:
    env = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{ROOT / '.pkg'}{os.pathsep}{ROOT}",
    }
    command = [sys.executable, "-m", "tests.backends.sharded_run"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for mesh, r in found.items():
        assert r["difference"] < 1e-10, (mesh, r)
    assert found["data=4"]["share"] == 1
    assert found["data=2 fsdp=2"]["share"] == 0.5
    assert found["fsdp=2 tensor=2"]["share"] == 0.25
