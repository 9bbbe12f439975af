"""The README's first command on a clean clone with nothing installed."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.evidence import row

ROOT = Path(__file__).parents[3]


@row(
    "main_job",
    "demo",
    "README's first command, clean clone: done in 8 minutes, bits per byte clearly below a bigram's",
    8,
)
def demo() -> tuple[Any, bool]:
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "planform"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("VIRTUAL_ENV", "PYTHONPATH", "PLANFORM"))
        }
        start = time.monotonic()
        done = subprocess.run(
            [".ci/demo", "--json"], cwd=clone, env=environment, capture_output=True, text=True, timeout=1200
        )
        seconds = time.monotonic() - start
    if done.returncode:
        return {"seconds": round(seconds), "error": (done.stderr or done.stdout)[-600:]}, False
    result = json.loads(done.stdout.splitlines()[-1])
    figure = {"seconds": round(seconds), **result}
    holds = seconds <= 480 and result["bits_per_byte"] <= result["bigram_bits_per_byte"] - 0.3 and result["verified"]
    return figure, holds
