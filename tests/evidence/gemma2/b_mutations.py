"""Broken in one fact at a time, the model is told from the right one every time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

from tests.evidence import row


@row("gemma2", "mutations", "every wrong version of the graph and of its states is caught, on XLA and on ONNX", 3)
def mutations() -> tuple[Any, bool]:
    command = [sys.executable, "-m", "planform", "verify", "gemma2@small", "--set", "window=16", "--mutate", "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    trials = found["trials"]
    kinds = Counter(t["mistake"].split(": ")[-1] for t in trials)
    smallest = min((t["error"], t["mistake"]) for t in trials if t["error"] is not None)
    figure = {
        "caught": found["caught"], "of": found["of"], "refused": sum(bool(t["refused"]) for t in trials),
        "smallest_error": smallest, "missed": [t["mistake"] for t in trials if not t["caught"]], "kinds": dict(kinds),
    }  # fmt: skip
    return figure, found["ok"] and found["of"] > 100
