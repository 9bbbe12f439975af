"""Pictures from noise: how far their distribution is from real ones', in the features of a small classifier."""

from __future__ import annotations

from typing import Any

import numpy as np

from planform.runtime.data import load_signals
from planform.runtime.functa.field import Field
from planform.runtime.functa.functaset import FIELD
from planform.runtime.functa.images import in_rows, pixels, sheet, write_png
from planform.runtime.sample import Generator
from planform.runtime.train import train
from planform.spec import load
from tests.evidence import row
from tests.evidence.features import Features, frechet

from .images import COUNT, PICTURES, STEPS, fashion_mnist, latents, workspace

DIFFUSION_STEPS, SAMPLES, SIDE = 1200, 2000, 28


@row(
    "functa",
    "diffusion",
    "2,000 pictures sampled by the diffusion model of spatial latents (1,200 steps of 128; 25 of DDIM, guidance 1.5): "
    "Frechet distance to held-out ones in a perceptron's 64 features at most a quarter of that of latents drawn from "
    "their normal distribution and a twentieth of noise's, beside real-vs-real and reconstructions; the perceptron "
    "names the class asked for in 70%",
    9,
)
def diffusion() -> tuple[Any, bool]:
    found = latents("spatial_functa", fashion_mnist(), STEPS, COUNT)
    files = fashion_mnist()
    real, apart = load_signals(files, 2, 1)
    assert apart is not None
    first, second = (apart["values"][i : i + SAMPLES] / np.float32(255) for i in (0, SAMPLES))
    features = Features(real["values"][:20_000] / np.float32(255), real["labels"][:20_000])
    overrides = ("train.evaluate.every=1000000",)
    run = workspace() / "runs" / "diffusion"
    spec = load("spatial_functa_diffusion", "small", overrides)
    train(spec, run, overrides=overrides, files=found.folder, steps=DIFFUSION_STEPS, quiet=True)
    labels = (np.arange(SAMPLES) % 10).astype(np.int32)
    made = Generator.of_run(run, overrides=("guidance=1.5",)).sample(
        {"label": labels}, SAMPLES, seed=1, steps=25, batch=250
    )
    field = Field.of_run(found.folder / FIELD)
    rng = np.random.default_rng(0)

    def rendered(z: np.ndarray) -> np.ndarray:
        return field.render(z, (SIDE, SIDE))

    pictures = {
        "real": second,
        "reconstructions": rendered(found.read("heldout")["latent"][SAMPLES : 2 * SAMPLES]),
        "samples": rendered(found.restored(made)),
        "normal latents": rendered(found.restored(rng.standard_normal(made.shape))),
        "noise": rng.uniform(size=first.shape),
    }
    there = features(first)
    distance = {k: frechet(there, features(v)) for k, v in pictures.items()}
    named = features.correct(pictures["samples"], labels)
    write_png(PICTURES / "samples.png", sheet(in_rows(list(pixels(pictures["samples"][:100])), 10)))
    write_png(PICTURES / "normal-latents.png", sheet(in_rows(list(pixels(pictures["normal latents"][:100])), 10)))
    figure = {
        "frechet": {k: round(v, 2) for k, v in distance.items()},
        "class asked for": round(named, 3),
        "of real ones": round(features.correct(second, apart["labels"][SAMPLES : 2 * SAMPLES]), 3),
        "grid": str(PICTURES / "samples.png"),
    }
    near = distance["samples"] <= distance["normal latents"] / 4 and distance["samples"] <= distance["noise"] / 20
    return figure, near and named >= 0.7
