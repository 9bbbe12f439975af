"""A curve as a picture: how far a field comes in training, and a latent in fitting."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 640, 400, 64, 36, 24, 48
INK, FAINT, LINE = (40, 40, 40), (222, 222, 222), (31, 99, 180)


def curve(points: Sequence[tuple[float, float]], title: str, along: str) -> np.ndarray:
    """A line through points (x, y), at least one, x ascending: uint8[400, 640, 3]."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    (x0, x1), (y0, y1) = (_range([p[axis] for p in points]) for axis in (0, 1))

    def at(x: float, y: float) -> tuple[float, float]:
        return (LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT),
                HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM))  # fmt: skip

    for x in _ticks(x0, x1):
        draw.line([at(x, y0), at(x, y1)], FAINT)
        draw.text((at(x, y0)[0], HEIGHT - BOTTOM + 6), f"{x:,g}", INK, font, "ma")
    for y in _ticks(y0, y1):
        draw.line([at(x0, y), at(x1, y)], FAINT)
        draw.text((LEFT - 8, at(x0, y)[1]), f"{y:g}", INK, font, "rm")
    draw.text((LEFT, 10), title, INK, font)
    draw.text((WIDTH - RIGHT, HEIGHT - 6), along, INK, font, "rd")
    places = [at(*p) for p in points]
    if len(places) > 1:
        draw.line(places, LINE, 2, "curve")
    for x, y in places if len(places) <= 30 else places[-1:]:
        draw.ellipse([x - 3, y - 3, x + 3, y + 3], LINE)
    return np.asarray(image)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From the lowest to the highest, and something on both sides where they are one."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 1, high + 1)


def _ticks(low: float, high: float) -> Iterator[float]:
    """Round numbers within a range, 4 to 10 of them."""
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    step *= next((k for k in (1, 2, 5) if (high - low) / (step * k) < 9), 5)
    for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        yield round(i * step, 12)
