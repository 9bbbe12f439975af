"""Speeds that the READMEs speak of, beside their peers: paired rounds, ratios with their 95% bootstrap intervals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.ratios import judged, together
from tests.evidence import row

ROOT = Path(__file__).parents[3]


def lines(*command: str) -> list[dict[str, Any]]:
    """The JSON lines that a benchmark prints."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@row(
    "main_job",
    "step_speed",
    "a training step (40M Gemma 2, 4 x 256, CPU) as fast as the same step hand-written in JAX",
    6,
)
def step_speed() -> tuple[Any, bool | str]:
    hand, ours = lines("tests.benchmarks.xla", "step", "--variants", "hand,ours", "--rounds", "9")
    figure = {
        "speed": ours["speed"],
        "interval": ours["interval"],
        "speed_by_processor_time": ours["speed_cpu"],
        "step_s": {"hand": hand["step_s"], "ours": ours["step_s"]},
        "losses": {"hand": hand["loss"], "ours": ours["loss"]},
    }
    return figure, judged(*ours["interval"], aim=1.0)


@row("main_job", "passes", "each pass that a backend uses for speed gains there (without / with, processor time)", 25)
def passes() -> tuple[Any, bool | str]:
    from planform.compiler.passes.pipeline import pipeline
    from tests.benchmarks.passes import ROWS

    figure: list[dict[str, Any]] = []
    verdicts: list[bool | str] = []
    for r in lines("tests.benchmarks.passes", "--builds", "9", "--rounds", "3"):
        backend, form = r["row"].split(":")[1:]
        used = ROWS[r["row"]][1] in pipeline(backend, form)
        measured = {key: r[key] for key in ("part", "clock", "processor")}
        figure.append({"pass": r["row"], "used": used, **measured})
        if used:
            verdicts.append(judged(*r["processor"][1:], aim=1.0))
    return figure, together(verdicts) if verdicts else False
