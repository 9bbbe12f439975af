"""Reconstruction: both fields at equal latent size on signals that their training never saw."""

from __future__ import annotations

from typing import Any

from tests.evidence import row

from .images import STEPS, digits, fashion_mnist, latents, photographs

CASES = {"fashion-mnist": (fashion_mnist, ()), "digits": (digits, ()), "photographs": (photographs, ("channels=3",))}


@row(
    "functa",
    "psnr",
    "held-out PSNR after three inner steps, spatial functa ahead of functa on each of Fashion-MNIST (28 x 28), digits "
    "(8 x 8) and photographs (16 x 16 in colour); 64 numbers an image, a field of width 32 and depth 4, 500 steps of "
    "16 images; measured on up to 2,000 held-out images",
    5,
)
def reconstruction() -> tuple[Any, bool]:
    figure: dict[str, Any] = {}
    for name, (files, more) in CASES.items():
        found = {m: latents(m, files(), STEPS, 2000, *more) for m in ("functa", "spatial_functa")}
        told = {m: s.told["splits"]["heldout"] for m, s in found.items()}
        figure[name] = {m: round(t["means"]["psnr"], 2) for m, t in told.items()}
        figure[name]["images"] = told["functa"]["rows"]
    return figure, all(f["spatial_functa"] > f["functa"] for f in figure.values())
