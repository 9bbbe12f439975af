"""SN-GAN learns: its samples beside those of a DCGAN without spectral norm, on Fashion-MNIST."""

from __future__ import annotations

import statistics
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from planform.runtime.data import load_signals
from planform.runtime.exporting import export_run
from planform.runtime.functa.curves import curve
from planform.runtime.functa.images import in_rows, sheet, write_png
from planform.runtime.sample import sample
from tests.evidence import row
from tests.evidence.commands import train
from tests.evidence.features import Residual, frechet
from tests.evidence.functa.images import fashion_mnist, workspace

from .d_resnet_learns import trained

SPECS = Path(__file__).parent / "gans"
PICTURES = Path("runs/evidence/sngan")
"""Where the row keeps sheets of samples."""
STEPS, BATCH, SEEDS, COUNT = 1000, 32, (11, 12, 13), 5000
"""Steps of the generator, pictures in one of them, seeds, and samples that a distance is measured of. Rates and the
discriminator's steps of both models were chosen on seed 7."""
EVERY = 250
"""Steps between two points of a curve."""


def samples(model: str, seed: int, batch: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """(pictures from 0 to 1, their classes) of a GAN by step of its training; a sheet of the last is kept."""
    name = f"{model}-{batch}-{seed}"
    folder = workspace() / "gans" / name
    kept = f"train.checkpoint={{every: {EVERY}, keep: {STEPS // EVERY}}}"
    train(SPECS / f"{model}.yaml", folder / "run", [kept], files=fashion_mnist(), steps=STEPS, batch=batch, seed=seed)
    found = {}
    for step in range(EVERY, STEPS + 1, EVERY):
        sample(folder / "run", folder / "samples", count=COUNT, seed=seed, step=step)
        with np.load(folder / "samples" / "samples.npz") as made:
            images, labels = made["images"], made["labels"]
        found[step] = images / np.float32(255), labels
    write_png(PICTURES / f"{name}.png", sheet(in_rows(list(images[:100]), 10)))
    return found


@cache
def real() -> tuple[Residual, np.ndarray, np.ndarray]:
    """The classifier of `resnet_learns`, and its features of two halves of the pictures held out."""
    _, apart = load_signals(fashion_mnist(), 2, 1)
    assert apart is not None
    run, folder = trained("residual", 0), workspace() / "onnx" / "features"
    export_run(run, folder, overrides=("graphs.classify.outputs=[logits, features]",))
    features = Residual(run, folder / "model.onnx")
    return features, *map(features, apart["values"].reshape(2, COUNT, 28, 28) / np.float32(255))


@row(
    "replicator_models",
    "sngan_learns",
    f"Fashion-MNIST, {STEPS:,} generator steps, three seeds: the Frechet distance of {COUNT:,} samples of SN-GAN "
    "to as many held-out pictures, in the 128 features of `resnet_learns`' classifier, in the mean at most 0.8 of that "
    "of a DCGAN without spectral norm, the worst below the best; beside it a batch of 128 in place of 32 at equal "
    "steps, real pictures, noise and how many show the class asked for; curves and sheets of samples are kept",
    45,
)
def sngan_learns() -> tuple[Any, bool]:
    features, here, there = real()
    noise = np.random.default_rng(0).uniform(size=(COUNT, 28, 28))
    found: dict[str, list[float]] = {}
    named: dict[str, list[float]] = {}
    curves: dict[str, list[dict[int, float]]] = {}
    for model, batch, seeds in (("sngan", BATCH, SEEDS), ("dcgan", BATCH, SEEDS), ("sngan", 4 * BATCH, SEEDS[:1])):
        name = model if batch == BATCH else f"{model}, batch {batch}"
        for seed in seeds:
            made = samples(model, seed, batch)
            distances = {step: frechet(here, features(images)) for step, (images, _) in made.items()}
            drawn = curve(list(distances.items()), f"Frechet distance of {name}, seed {seed}", "steps of the generator")
            write_png(PICTURES / f"{model}-{batch}-{seed}-curve.png", drawn)
            found.setdefault(name, []).append(distances[STEPS])
            named.setdefault(name, []).append(features.correct(*made[STEPS]))
            curves.setdefault(name, []).append({step: round(value, 2) for step, value in distances.items()})
    figure = {
        "frechet": {
            **{k: [round(v, 2) for v in each] for k, each in found.items()},
            "real": round(frechet(here, there), 2),
            "noise": round(frechet(here, features(noise)), 2),
        },
        "class asked for": {k: round(statistics.mean(each), 3) for k, each in named.items()},
        "curves": curves,
        "kept": str(PICTURES),
    }
    ours, theirs = found["sngan"], found["dcgan"]
    return figure, max(ours) < min(theirs) and statistics.mean(ours) <= 0.8 * statistics.mean(theirs)
