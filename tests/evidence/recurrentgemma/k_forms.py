"""The recurrence alone on XLA's CPU, beside every other form that exists for JAX."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.ratios import judged, together
from tests.evidence import row
from tests.evidence.rows import Outcome

SHAPES = ((4, 256, 512), (1, 512, 2560), (1, 4096, 1024))
"""[batch, time, width]: a training step of 36M parameters, a prompt for 2b, a long one for a smaller model."""


@row(
    "recurrentgemma",
    "recurrence_forms",
    "on XLA's CPU the fastest of the forms that exist, forward and with its gradient, alone and made from x and log a: "
    "lax.scan plain and unrolled, lax.associative_scan, chunks, and recurrentgemma's own three",
    4,
)
def recurrence_forms() -> Outcome:
    from tests.benchmarks.recurrence import UNROLLED, run

    figure: dict[str, Any] = {}
    verdicts = []
    some = (*run(SHAPES[:1], ("layer",)), *run(SHAPES[:1], ("alone",), without=(UNROLLED,)))
    for line in (*some, *run(SHAPES[1:], without=(UNROLLED,))):
        rivals = {name: speed for name, speed in line["speed"].items() if name != "one pass"}
        verdicts += [judged(low, high, 1) for _, low, high in rivals.values()]
        nearest = min(rivals, key=lambda name: rivals[name][0])
        slowest = max(rivals, key=lambda name: line["compile_s"][name])
        figure[f"{line['shape']} {line['what']} {line['direction']}"] = {
            "ms": line["ms"]["ours"],
            "times as fast as the next": {nearest: rivals[nearest]},
            "as the others": {name: speed[0] for name, speed in rivals.items() if name != nearest},
            "of one pass over its arrays": line["speed"]["one pass"],
            "first compile, s": {"ours": line["compile_s"]["ours"], slowest: line["compile_s"][slowest]},
        }
    return figure, together(verdicts)
