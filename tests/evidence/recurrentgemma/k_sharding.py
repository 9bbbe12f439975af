"""Sequences split over devices: the same values and gradients, and messages whose size a sequence doesn't change."""

from __future__ import annotations

from typing import Any

from tests.evidence import row
from tests.evidence.rows import Outcome

MESHES = ("seq=2", "seq=4", "seq=8", "data=2 seq=2 tensor=2")
"""Of these the last sums products over `tensor` too, [.., time, d]: there only values are compared."""

TIMES = (256, 512, 1024)
"""So that a device's part is longer than what crosses its edges: a window, and, as XLA moves the edges where it pads, a
block for every device."""


@row(
    "recurrentgemma",
    "sequence_sharding",
    "sequences split over 2, 4 and 8 devices, documents across every edge: loss and gradients within 1e-12 relative of "
    "one device in float64, RecurrentGemma's and Hawk's; a device's bytes of collectives in the compiled step are the "
    "same for 256, 512 and 1024 entries",
    6,
)
def sequence_sharding() -> Outcome:
    from tests.backends.sequence_run import RUNS
    from tests.backends.test_xla_sharding import run

    figure: dict[str, Any] = {}
    holds = True
    for what in ("recurrentgemma", "hawk", *RUNS):
        for mesh in MESHES[:-1] if what in RUNS else MESHES:
            cases = [f"{what} {mesh} time={time}" for time in TIMES]
            found = list(run("tests.backends.sequence_run", 8, *cases).values())
            worst, each = max(r["difference"] for r in found), [r["bytes"] for r in found]
            kinds = {kind: sum(shapes.values()) for kind, shapes in found[-1]["told"].items()}
            figure[f"{what} {mesh}"] = {"difference": float(f"{worst:.1e}"), "bytes": each[-1], "collectives": kinds}
            holds &= worst < 1e-12 and (len(set(each)) == 1 or "tensor" in mesh)
            if len(set(each)) > 1:
                figure[f"{what} {mesh}"]["bytes"] = dict(zip(TIMES, each))
    return figure, holds
