"""Signals on regular grids (images, sound, volumes) as points with values: what fields are fitted to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .arrays import ArrayData, load_arrays
from .formats import Signals, published
from .source import Batch, Share

IMAGES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
VALUES, LABELS = ("images", "signals", "values", "x"), ("labels", "label", "y")


def grid(*shape: int) -> np.ndarray:
    """The centres of a grid's cells in [0, 1], the last axis varying fastest: float32[points, axes]."""
    return centres(np.arange(math.prod(shape)), shape)


def centres(index: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Of cells by their number: float32[len(index), axes]."""
    found = np.stack(np.unravel_index(index, tuple(shape)), -1)
    return ((found + 0.5) / np.asarray(shape)).astype(np.float32)


def load_signals(path: str | Path, axes: int, channels: int) -> tuple[Signals, Signals | None]:
    """Signals, and those that are held out where the files say which.

    path      an .npz with `images` (`signals`, `values`, `x`) and perhaps `labels` (`y`); an .npy; a folder of images
              of one size, those of a class in a folder of its name if there are several; a folder with the files of
              MNIST, Fashion-MNIST, CIFAR-10 or CIFAR-100 (the binary version)
    axes      of a signal: 2 for images
    channels  that the model takes; image files are made grey for 1

    Raises: UserError for anything else.
    """
    path = Path(path)
    if path.is_dir() and (both := published(path)):
        train, test = (_checked(part, path, axes, channels) for part in both)
        return train, test
    return _checked(_read(path, channels), path, axes, channels), None


def _read(path: Path, channels: int) -> Signals:
    if path.is_dir() and not any(path.glob("*.npy")):
        found = _images(path, channels)
    else:
        arrays = load_arrays(path)
        name = next((n for n in VALUES if n in arrays), None) or (next(iter(arrays)) if len(arrays) == 1 else None)
        if name is None:
            raise UserError(f"{path} has no `images`", help=f"it has {', '.join(arrays)}")
        found = {"values": arrays[name]}
        if label := next((n for n in LABELS if n in arrays), None):
            found["labels"] = np.asarray(arrays[label]).reshape(-1).astype(np.int32)
    return found


def _checked(found: Signals, path: Path, axes: int, channels: int) -> Signals:
    """The signals as [rows, *shape, channels]. Raises: UserError where they aren't what the model takes."""
    values = found["values"]
    if values.ndim == axes + 1:
        values = values[..., None]
    if values.ndim != axes + 2 or values.dtype.kind not in "uif":
        raise UserError(
            f"{path} holds {values.dtype}{list(values.shape)}",
            help=f"signals of {axes} axes are [rows, {axes} sizes, channels]",
        )
    if values.shape[-1] != channels:
        raise UserError(
            f"the signals of {path} have {values.shape[-1]} channels, the model's {channels}",
            help=f"--set channels={values.shape[-1]}, if the spec calls them so",
        )
    return {**found, "values": values}


def _images(folder: Path, channels: int) -> Signals:
    """All images of a folder, by name; the folders in it are classes. Raises: UserError."""
    from PIL import Image, UnidentifiedImageError

    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES and p.is_file())
    if not files:
        raise UserError(f"there are no images in {folder}", help="give a folder of images, an .npz or an .npy")
    if channels not in (1, 3):
        raise UserError(f"images have 1 or 3 channels, the model takes {channels}")
    made: list[np.ndarray] = []
    for file in files:
        try:
            with Image.open(file) as image:
                array = np.asarray(image.convert("L" if channels == 1 else "RGB"))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise UserError(f"{file} is no image that can be read: {error}") from error
        if made and array.shape != made[0].shape:
            (h, w), (h0, w0) = array.shape[:2], made[0].shape[:2]
            raise UserError(f"{file} is {w} x {h}, {files[0].name} is {w0} x {h0}", help="images must have one size")
        made.append(array)
    found = {"values": np.stack(made)}
    classes = sorted({f.parent for f in files})
    if len(classes) > 1:
        found["labels"] = np.asarray([classes.index(f.parent) for f in files], np.int32)
    return found


def scaled(values: np.ndarray) -> np.ndarray:
    """Signals in float32: integers of 8 or 16 bits from 0 to 1, floats as they are."""
    if values.dtype.kind in "ui":
        return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
    return values.astype(np.float32)


class SignalData(ArrayData):
    """Batches of signals, every point of them; a DataSource.

    signals  `values` and perhaps `labels`, as `load_signals` gives them
    fields   names of the coordinates, the values and, if there is a third, the labels
    share, seed, heldout, portion, source  as `ArrayData` takes them

    Raises: UserError where labels are asked for and there are none.
    """

    def __init__(
        self,
        signals: Mapping[str, np.ndarray],
        fields: tuple[str, ...],
        share: Share,
        seed: int = 0,
        heldout: Mapping[str, np.ndarray] | None = None,
        portion: float = 0.05,
        source: str = "the signals",
    ) -> None:
        if len(fields) > 2 and "labels" not in signals:
            raise UserError(f"{source} has no labels", help="an array `labels`, or a folder for each class")
        names = ("values", "labels")[: 2 if len(fields) > 2 else 1]
        kept = {n: signals[n] for n in names}
        apart = None if heldout is None else {n: heldout[n] for n in names}
        super().__init__(kept, share, seed, apart, portion, source)
        self._fields = fields
        self.shape = tuple(signals["values"].shape[1:-1])
        self.coords = grid(*self.shape)

    @property
    def labels(self) -> str | None:
        """The field that holds labels, if they are asked for."""
        return self._fields[2] if len(self._fields) > 2 else None

    def batch_of(self, rows: Batch) -> Batch:
        """Signals from the files as points with values."""
        values = scaled(rows["values"])
        points = values.reshape(len(values), -1, values.shape[-1])
        coords = np.broadcast_to(self.coords, (len(values), *self.coords.shape))
        return dict(zip(self._fields, (coords, points, *((rows["labels"],) if "labels" in rows else ()))))

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "kind": "signals", "shape": list(self.shape)}
