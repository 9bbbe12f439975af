"""Graphs print and parse back after every pass; compiling twice gives the same bytes; the spec is short."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.evidence import row

ROOT = Path(__file__).parents[3]


@row("main_job", "round_trip", "parse(print(graph)) == graph for every shipped model and size, after every pass", 1)
def round_trip() -> tuple[Any, bool]:
    from planform.compiler.ir import verify
    from planform.compiler.text import equal, from_text, to_text
    from tests.compiler.shipped import stages

    checked, wrong = 0, []
    for name, graph in stages():
        verify(graph)
        text = to_text(graph)
        back = from_text(text)
        checked += 1
        if not equal(graph, back) or to_text(back) != text:
            wrong.append(name)
    return {"graphs": checked, "wrong": wrong}, checked > 0 and not wrong


EXPORT = """
import sys
from pathlib import Path
from planform.backends.onnx import export
from planform.compiler.elaborate import elaborate
from planform.compiler.parameters import initial
from planform.compiler.passes.last import last_only
from planform.compiler.passes.pipeline import optimise
from planform.compiler.passes.stateful import stateful
from planform.spec import load
graph = elaborate(load("gemma2", "small"))
values = initial(graph.parameters)
export(optimise(last_only(stateful(graph)), "onnx", "step"), values.__getitem__, Path(sys.argv[1]), metadata={})
"""


@row("main_job", "deterministic", "the same spec gives the same ONNX bytes twice, in two processes", 0.5)
def deterministic() -> tuple[Any, bool]:
    digests = []
    for seed in ("1", "2"):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "model"
            subprocess.run(
                [sys.executable, "-c", EXPORT, str(out)], check=True, env={**_environment(), "PYTHONHASHSEED": seed}
            )
            files = [p for p in sorted(out.iterdir()) if p.name.startswith("model.onnx")]
            digests.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest()[:16] for p in files})
    return digests[0], digests[0] == digests[1] and len(digests[0]) >= 1


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT / ".pkg")}


@row("main_job", "spec_lines", "models/gemma2.yaml is at most 45 lines, training and weights map aside", 0)
def spec_lines() -> tuple[Any, bool]:
    kept, skip = 0, False
    for line in (ROOT / "models/gemma2.yaml").read_text().splitlines():
        if line and not line[0].isspace():
            skip = line.split(":")[0] in ("train", "weights")
        kept += bool(line.strip()) and not skip
    return kept, kept <= 45
