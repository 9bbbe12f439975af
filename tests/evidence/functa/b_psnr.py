"""Reconstruction: both fields at equal latent size on signals that their training never saw."""

from __future__ import annotations

from typing import Any

from tests.evidence import row

from .images import STEPS, digits, fashion_mnist, latents, photographs

CASES = {
    "fashion-mnist": (fashion_mnist, (), ()),
    "digits": (digits, (), ()),
    "photographs": (photographs, ("channels=3",), ("rows=2", "columns=2", "features=16")),
}
"""Images, what they ask of both fields, and the grid where it isn't 4 x 4 x 4.

A cell of 4 numbers can't hold 4 x 4 pixels in colour, 48 values: the best linear code of that form, principal
components of the cells, gives 31.1 dB on held-out photographs, that of 2 x 2 cells with 16 numbers 36.8 dB, that of
whole images with 64 numbers 36.3 dB. The paper's cells have 16 numbers as well.
"""


@row(
    "functa",
    "psnr",
    "held-out PSNR after three inner steps, spatial functa ahead of functa on each of Fashion-MNIST (28 x 28), digits "
    "(8 x 8) and photographs (16 x 16 in colour); 64 numbers an image (grids of 4 x 4 x 4, of photographs 2 x 2 x 16), "
    "fields of width 32 and depth 4 and the same rate for both, 500 steps of 16 images; measured on up to 2,000 "
    "held-out images",
    5,
)
def reconstruction() -> tuple[Any, bool]:
    figure: dict[str, Any] = {}
    for name, (files, both, grid) in CASES.items():
        more = {"functa": both, "spatial_functa": (*both, *grid)}
        found = {m: latents(m, files(), STEPS, 2000, *more[m]) for m in more}
        told = {m: s.told["splits"]["heldout"] for m, s in found.items()}
        figure[name] = {m: round(t["means"]["psnr"], 2) for m, t in told.items()}
        figure[name]["images"] = told["functa"]["rows"]
    return figure, all(f["spatial_functa"] > f["functa"] for f in figure.values())
