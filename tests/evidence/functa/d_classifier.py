"""What latents are good for: classes of pictures from their latents alone."""

from __future__ import annotations

import statistics
from typing import Any

from planform.runtime.evaluate import evaluate_run
from planform.runtime.train import train
from planform.spec import load
from tests.evidence import row

from .images import latents, scenes, workspace

SEEDS = (0, 1, 2)
ARTICLES, COPIES, HELD_OUT = 10_000, 2, 4992
FIELD_STEPS, CLASSIFIER_STEPS = 400, 1200
BOTH = ("channels=3", "width=64", "rate=0.002")
CASES = {
    "functa": (("depth=5", "features=256"), ("features=256",)),
    "spatial_functa": (("depth=4", "features=16"), ("features=16",)),
}
"""What a field and its latents' classifier have of their own. Functa's deeper one has as many shifts as a latent has
numbers, so that none of these is wasted."""


@row(
    "functa",
    "classifier",
    "Fashion-MNIST's articles before scikit-learn's photographs, 32 x 32 in colour, 256 numbers a picture (a grid of "
    "4 x 4 x 16, or a vector), 20,000 latents to learn on (10,000 articles in two scenes each) and 4,992 of other "
    "articles and scenes: every one of three seeds of the transformer on spatial latents is ahead of every one of the "
    "MLP on vectors, by 3 points in the mean; fields of width 64 and 400 steps of 16, classifiers of 1,200 of 128",
    12,
)
def classifier() -> tuple[Any, bool]:
    found: dict[str, list[float]] = {}
    psnr: dict[str, float] = {}
    files = scenes(ARTICLES, COPIES, HELD_OUT)
    for field, (its, read) in CASES.items():
        functaset = latents(field, files, FIELD_STEPS, None, *BOTH, *its)
        psnr[field] = round(functaset.told["splits"]["heldout"]["means"]["psnr"], 2)
        for seed in SEEDS:
            folder = workspace() / "runs" / f"{field}-classifier-{seed}"
            overrides = ("train.evaluate.every=1000000", *read)
            spec = load(f"{field}_classifier", "small", overrides)
            train(spec, folder, overrides=overrides, files=functaset.folder, steps=CLASSIFIER_STEPS, seed=seed,
                  quiet=True)  # fmt: skip
            found.setdefault(field, []).append(100 * evaluate_run(folder, batches=HELD_OUT // 128)["accuracy"])
    gap = statistics.mean(found["spatial_functa"]) - statistics.mean(found["functa"])
    figure = {
        **{k: [round(a, 2) for a in v] for k, v in found.items()},
        "gap": round(gap, 2),
        "unit": "% correct",
        "held-out PSNR": psnr,
    }
    return figure, gap >= 3 and min(found["spatial_functa"]) > max(found["functa"])
