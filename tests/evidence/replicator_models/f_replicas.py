"""The same training program on one device, on eight, and in two processes."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.evidence import row
from tests.models.replicas_run import PROGRAMS, apart


@row(
    "replicator_models",
    "replicas",
    "small ResNet-50, SN-GAN, D4PG from states and from pictures, a few steps in float64 on one device, on eight, and "
    "in two processes of four: their ends are apart by less than 1e-6 of how far they went",
    8,
)
def replicas() -> tuple[Any, bool]:
    figure: dict[str, Any] = {}
    holds = True
    for model in PROGRAMS:
        with TemporaryDirectory() as folder:
            found = apart(model, Path(folder))
        figure[model] = {name: f"{value:.1e}" for name, value in found.items()}
        holds &= max(found.values()) < 1e-6
    return figure, holds
