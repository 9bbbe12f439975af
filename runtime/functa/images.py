"""Signals as PNG files: single images and sheets of many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files import whole

GAP = 2
"""Pixels between the images of a sheet."""


def pixels(values: np.ndarray) -> np.ndarray:
    """Values from 0 to 1, what lies beyond cut off, as uint8."""
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def check_images(axes: int, channels: int) -> None:
    """Raises: UserError where signals are no pictures."""
    if axes != 2 or channels not in (1, 3):
        raise UserError(
            f"signals of {axes} axes and {channels} channels are no images",
            help="--npy writes them as arrays",
        )


def write_png(file: Path, image: np.ndarray) -> None:
    """An image uint8[height, width, 1 or 3]. Raises: UserError."""
    write_picture(file, Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image))


def write_picture(file: Path, image: Image.Image, **how: Any) -> None:
    """A picture in the format that its name says; `how` as that format has it. Raises: UserError."""
    with whole(file, parents=True) as f:
        image.save(f, file.suffix[1:], **how)


def sheet(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Rows of images, uint8[h, w, channels] each, as one on white; those of a row stand on one line."""
    heights = [max(image.shape[0] for image in row) for row in rows]
    width = max(sum(image.shape[1] + GAP for image in row) for row in rows) - GAP
    channels = rows[0][0].shape[-1]
    out = np.full((sum(heights) + GAP * (len(rows) - 1), width, channels), 255, np.uint8)
    top = 0
    for row, height in zip(rows, heights):
        left = 0
        for image in row:
            h, w = image.shape[:2]
            out[top : top + h, left : left + w] = image
            left += w + GAP
        top += height + GAP
    return out


def in_rows(images: Sequence[np.ndarray], columns: int) -> list[Sequence[np.ndarray]]:
    return [images[i : i + columns] for i in range(0, len(images), columns)]


def enlarged(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """By the nearest pixel, to stand beside what a field renders there."""
    rows = np.minimum((np.arange(height) + 0.5) * image.shape[0] / height, image.shape[0] - 1).astype(int)
    columns = np.minimum((np.arange(width) + 0.5) * image.shape[1] / width, image.shape[1] - 1).astype(int)
    return image[rows][:, columns]
