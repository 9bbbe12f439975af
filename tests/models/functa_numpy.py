"""Functa and spatial functa in plain NumPy, float64, from the papers' formulas: what the compiled ones must equal.

Fields are sine layers with a shift inside the frequency, sin(w0 (W h + b + s)) (arXiv:2201.12204), s a linear map of
the latent, or of its cell's latent (arXiv:2302.03130). Latents go down the gradient of their own image's mean
squared error; the gradient is written out by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Field:
    """layers  (hidden weight, hidden bias, shift weight, shift bias) of each sine layer
    out       weight and bias of the last one
    cells     rows and columns of the latent grid; none for one latent vector an image
    """

    layers: Sequence[tuple[Array, Array, Array, Array]]
    out: tuple[Array, Array]
    w0: float
    cells: tuple[int, int] | None = None

    def read(self, latent: Array, coords: Array) -> tuple[Array, Array]:
        """(the latent at each point, the coordinates that the field sees), for one image."""
        if self.cells is None:
            return np.broadcast_to(latent, (len(coords), latent.shape[-1])), coords
        at = coords * self.cells
        cell = np.floor(at).astype(int)
        return latent[cell[:, 0], cell[:, 1]], at - cell

    def __call__(self, latent: Array, coords: Array) -> Array:
        z, h = self.read(latent, coords)
        for w, b, m, c in self.layers:
            h = np.sin(self.w0 * (h @ w + b + z @ m + c))
        return h @ self.out[0] + self.out[1] + 0.5

    def slope(self, latent: Array, coords: Array, colours: Array) -> Array:
        """The gradient of mean((field - colours)^2) with respect to the latent of one image."""
        z, h = self.read(latent, coords)
        kept = []
        for w, b, m, c in self.layers:
            inside = self.w0 * (h @ w + b + z @ m + c)
            h = np.sin(inside)
            kept.append(inside)
        error = h @ self.out[0] + self.out[1] + 0.5 - colours
        dh = (2 / error.size) * error @ self.out[0].T
        dz = np.zeros_like(z)
        for (w, _, m, _), inside in zip(reversed(self.layers), reversed(kept)):
            ds = dh * self.w0 * np.cos(inside)
            dz += ds @ m.T
            dh = ds @ w.T
        if self.cells is None:
            return dz.sum(0)
        cell = np.floor(coords * self.cells).astype(int)
        total = np.zeros_like(latent)
        np.add.at(total, (cell[:, 0], cell[:, 1]), dz)
        return total


def fitted(field: Field, coords: Array, colours: Array, rates: Array, steps: int) -> Array:
    """The latents of a batch [images, ..] after so many steps from zero."""
    found = []
    for x, y in zip(coords, colours):
        latent = np.zeros(rates.shape)
        for _ in range(steps):
            latent = latent - np.clip(rates, 0, 1) * field.slope(latent, x, y)
        found.append(latent)
    return np.stack(found)


def outer_loss(field: Field, coords: Array, colours: Array, rates: Array, steps: int) -> float:
    """The loss after fitting, averaged over a batch."""
    latents = fitted(field, coords, colours, rates, steps)
    return float(np.mean([np.mean((field(z, x) - y) ** 2) for z, x, y in zip(latents, coords, colours)]))


def pixels(*shape: int) -> Array:
    """The centres of pixels in [0, 1], rows before columns: [pixels, axes]."""
    axes = [(np.arange(n) + 0.5) / n for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(shape))


def difference(f: Callable[[Array], float], at: Array, direction: Array, step: float = 1e-6) -> float:
    """The slope of f along a direction, by central differences."""
    return (f(at + step * direction) - f(at - step * direction)) / (2 * step)
