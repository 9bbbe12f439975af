"""Signals as PNG files: single images and sheets of many."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files import whole

GAP = 2
"""Pixels between the images of a sheet."""
SHEET = 1 << 18
"""Pixels of the largest image that a sheet shows, and that is held in memory as a whole."""


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


def stream_png(file: Path, shape: Sequence[int], parts: Iterable[np.ndarray]) -> None:
    """An image as its pixels come, without ever being in memory as a whole.

    shape  height, width and channels, 1 or 3
    parts  its pixels in order, uint8[n, channels] with any n

    Raises: UserError.
    """
    height, width, channels = shape
    with whole(file, parents=True) as f:

        def chunk(kind: bytes, data: bytes) -> None:
            f.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))

        f.write(b"\x89PNG\r\n\x1a\n")
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0))
        squeeze, rest = zlib.compressobj(), np.empty((0, channels), np.uint8)
        for part in parts:
            held = np.concatenate([rest, part])
            lines = len(held) // width
            some, rest = held[: lines * width].reshape(lines, width, channels), held[lines * width :]
            # Each pixel less its left neighbour (filter 1), which smooth pictures need to become small.
            left = np.pad(some[:, :-1], ((0, 0), (1, 0), (0, 0)))
            rows = np.pad((some - left).reshape(lines, width * channels), ((0, 0), (1, 0)), constant_values=1)
            chunk(b"IDAT", squeeze.compress(rows.tobytes()))
        chunk(b"IDAT", squeeze.flush())
        chunk(b"IEND", b"")


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
