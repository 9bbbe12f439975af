"""Broken in one fact at a time, the model is told from the right one every time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

from tests.evidence import row

MUST = {
    "linear_recurrence: no reset", "linear_recurrence: a document's first entry normalised",
    "linear_recurrence: not normalised", "log_decay: rate of the other sign", "conv1d: documents run together",
    "conv1d: taps reversed", "attend: window one longer", "attend: window one shorter", "attend: window dropped",
    "rope: wrong half rotated", "rope: other half of the head rotated", "rope: whole head rotated",
    "state not carried on",
}  # fmt: skip
"""What ports of this family have been seen to get wrong."""


@row(
    "recurrentgemma", "mutations", "every wrong version of the graph and of its states is caught, on XLA and on ONNX", 5
)
def mutations() -> tuple[Any, bool]:
    command = [sys.executable, "-m", "planform", "verify", "recurrentgemma@small", "--set", "window=16", "--mutate",
               "--json"]  # fmt: skip
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    trials = found["trials"]
    smallest = sorted((t["error"], t["mistake"], t["backend"]) for t in trials if t["error"] is not None)[:5]
    figure = {
        "caught": found["caught"], "of": found["of"], "refused": sum(bool(t["refused"]) for t in trials),
        "smallest_errors": smallest, "missed": [t["mistake"] for t in trials if not t["caught"]],
        "not_tried": sorted(MUST - {t["mistake"] for t in trials}),
        "kinds": dict(Counter(t["mistake"] for t in trials)),
    }  # fmt: skip
    return figure, found["ok"] and found["of"] > 150 and not figure["not_tried"]
