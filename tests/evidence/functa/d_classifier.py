"""What latents are good for: classes of pictures from their latents alone."""

from __future__ import annotations

import statistics
from typing import Any

from planform.runtime.evaluate import evaluate_run
from planform.runtime.train import train
from planform.spec import load
from tests.evidence import row

from .images import COUNT, STEPS, fashion_mnist, latents, workspace

SEEDS = (0, 1, 2)
CLASSIFIER_STEPS = 600


@row(
    "functa",
    "classifier",
    "Fashion-MNIST from 64 numbers a picture, 5,000 latents to learn on and 4,992 held out: every one of three seeds "
    "of the transformer on spatial latents is ahead of every one of the MLP on vectors, by 2 points in the mean; 600 "
    "steps of 128",
    9,
)
def classifier() -> tuple[Any, bool]:
    found: dict[str, list[float]] = {}
    for field in ("functa", "spatial_functa"):
        files = latents(field, fashion_mnist(), STEPS, COUNT).folder
        for seed in SEEDS:
            folder = workspace() / "runs" / f"{field}-classifier-{seed}"
            overrides = ("train.evaluate.every=1000000",)
            spec = load(f"{field}_classifier", "small", overrides)
            train(spec, folder, overrides=overrides, files=files, steps=CLASSIFIER_STEPS, seed=seed, quiet=True)
            found.setdefault(field, []).append(100 * evaluate_run(folder, batches=39)["accuracy"])
    gap = statistics.mean(found["spatial_functa"]) - statistics.mean(found["functa"])
    figure = {**{k: [round(a, 2) for a in v] for k, v in found.items()}, "gap": round(gap, 2), "unit": "% correct"}
    return figure, gap >= 2 and min(found["spatial_functa"]) > max(found["functa"])
