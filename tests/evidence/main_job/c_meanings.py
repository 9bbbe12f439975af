"""One graph, three meanings."""

from __future__ import annotations

from typing import Any

from planform.compiler.elaborate import elaborate
from planform.runtime.verify import FORMS, TOLERANCE, verify
from planform.spec import load
from tests.evidence import row


@row(
    "main_job",
    "meanings",
    "XLA and ONNX agree with the float64 reference to 2e-5 relative (float32) on random weights and inputs longer than "
    "two windows: whole sequences of several documents, a padded prompt, token by token across the windows",
    2,
)
def meanings() -> tuple[Any, bool]:
    figure: dict[str, Any] = {}
    holds = True
    for seed in (0, 1):
        report = verify(elaborate(load("gemma2@small")), seed=seed)
        holds &= report.holds and len(report.agreements) == 2 * len(FORMS)
        figure["entries"], figure["window"] = report.time, report.window
        for a in report.agreements:
            key = f"{a.backend}, {a.form}"
            figure[key] = max(figure.get(key, 0.0), float(f"{a.error:.2e}"))
            holds &= a.error <= TOLERANCE
    return figure, holds and figure["entries"] > 2 * figure["window"]
