"""Encoding beside the same inner loop as an expert writes it in JAX (tests/benchmarks/functa.py)."""

from __future__ import annotations

import argparse
from typing import Any

from tests.benchmarks.functa import measure
from tests.benchmarks.ratios import judged, together
from tests.evidence import row

BATCH, ROUNDS = 16, 15


@row(
    "functa",
    "encode_speed",
    "images encoded a second on XLA are at least 1.0 x those of hand-written JAX (vmap over images of a loop of grad, "
    "the points shared by all), paired rounds; 16 x 16 in colour, 1024 numbers an image, width 128, depth 6, three "
    "steps",
    2,
)
def encode_speed() -> tuple[Any, bool | str]:
    figure: dict[str, Any] = {}
    verdicts: list[bool | str] = []
    for model in ("functa", "spatial_functa"):
        asked = argparse.Namespace(model=model, width=128, depth=6, side=16, batch=BATCH, rounds=ROUNDS, ours=[])
        found = measure("fit", asked)
        low, high = found["interval"]
        figure[model] = {
            "speed": found["speed"],
            "interval": found["interval"],
            "by_processor_time": found["by_processor_time"],
            "images/s": {k: round(BATCH / found[k]["ms"] * 1e3) for k in ("ours", "hand")},
            "difference": found["difference"],
        }
        verdicts.append(judged(low, high, 1.0) if found["difference"] <= 1e-3 else False)
    return figure, together(verdicts)
