"""Counts from symbolic shapes."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import Any

from tests.evidence import row

OUTSIDE_EMBEDDING = {"2b": 2_024_517_888, "9b": 8_324_201_984, "27b": 26_047_480_320}  # arXiv:2408.00118, table 2


@row("main_job", "counts", "Gemma 2's parameters outside the embedding, exactly, in under 2 s a size, unallocated", 0.2)
def counts() -> tuple[Any, bool]:
    figure, holds = {}, True
    for size, want in OUTSIDE_EMBEDDING.items():
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "planform", "show", f"gemma2@{size}", "--json"],
            capture_output=True,
            text=True,
            check=True,
        )
        seconds = time.monotonic() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        got = json.loads(done.stdout)["parameters"]["outside_embedding"]
        figure[size] = {"parameters": got, "seconds": round(seconds, 2), "peak_mb": round(peak)}
        holds &= got == want and seconds < 2 and peak < 1024
    return figure, holds
