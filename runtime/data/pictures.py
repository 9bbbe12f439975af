"""Where pictures come from: image files in folders of classes, ImageNet as it is published, arrays in memory.

Nothing is decoded before it is asked for.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import UserError
from .arrays import some
from .signals import IMAGES, load_signals

Picture = Any
"""A PIL image; this module is imported without PIL."""

TRAIN, HELDOUT = ("train", "training"), ("val", "validation", "valid", "test")
_WORDNET = re.compile(r"n\d{8}")


class Pictures(Protocol):
    """Pictures by number, read by several threads at once."""

    @property
    def labels(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def read(self, i: int) -> Picture:
        """Raises: UserError naming a file that can't be read."""

    def told(self) -> str:
        """What tells this collection from another."""


@dataclass(frozen=True)
class Files:
    """Image files, grey (mode "L") or in colours ("RGB"), with the numbers of their classes."""

    files: Sequence[Path]
    labels: np.ndarray | None
    mode: str

    def __len__(self) -> int:
        return len(self.files)

    def read(self, i: int) -> Picture:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(self.files[i]) as image:
                return image.convert(self.mode)
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise UserError(f"{self.files[i]} is no image that can be read: {error}") from error

    def told(self) -> str:
        return " ".join(f.name for f in self.files)


@dataclass(frozen=True)
class Arrays:
    """uint8[rows, height, width, 1 or 3]."""

    values: np.ndarray
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.values)

    def read(self, i: int) -> Picture:
        from PIL import Image

        one = np.asarray(self.values[i])
        return Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one)

    def told(self) -> str:
        return f"{self.values.shape} {[int(np.sum(self.values[r])) for r in some(len(self))]}"


def load_pictures(path: str | Path, channels: int) -> tuple[Pictures, Pictures | None]:
    """Pictures, and those that are held out where the files say which.

    path      a folder with a folder of images for each class; one with two of these, `train` and `val`; ImageNet as
              it is published (`Data/CLS-LOC` and `LOC_val_solution.csv`); or what `load_signals` reads: arrays with
              labels, the files of MNIST, Fashion-MNIST and CIFAR
    channels  1 or 3, grey or in colours

    Raises: UserError for anything else.
    """
    path = Path(path)
    if channels not in (1, 3):
        raise UserError(f"images have 1 or 3 channels, the model takes {channels}")
    mode = "L" if channels == 1 else "RGB"
    if (path / "ILSVRC").is_dir():
        path = path / "ILSVRC"
    root = path / "Data" / "CLS-LOC" if (path / "Data" / "CLS-LOC").is_dir() else path
    train, heldout = (next((root / n for n in names if (root / n).is_dir()), None) for names in (TRAIN, HELDOUT))
    if train is not None and heldout is not None:
        classes = _classes(train)
        flat = [] if _classes(heldout) else _images(heldout)
        apart = _solved(flat, classes, path, mode) if flat else _in_folders(heldout, classes, mode)
        return _in_folders(train, classes, mode), apart
    if path.is_dir() and (classes := _classes(path)):
        return _in_folders(path, classes, mode), None
    both = load_signals(path, 2, channels)
    arrays = [Arrays(_bytes(s["values"], path), s.get("labels")) for s in both if s is not None]
    return arrays[0], (arrays[1] if len(arrays) > 1 else None)


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGES)


def _classes(folder: Path) -> list[str]:
    """The names of the folders in it that hold images, in order: a class's number is its place."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and _images(p))


def _in_folders(folder: Path, classes: list[str], mode: str) -> Files:
    """Raises: UserError where it has a class that is none of these, or no images."""
    if other := sorted(set(_classes(folder)) - set(classes)):
        raise UserError(f"{folder / other[0]} is a class that there is nothing to train on of")
    files = [(f, i) for i, name in enumerate(classes) if (folder / name).is_dir() for f in _images(folder / name)]
    if not files:
        raise UserError(f"there are no images in {folder}", help="a folder for each class, the images in it")
    return Files([f for f, _ in files], np.asarray([i for _, i in files], np.int32), mode)


def _solved(files: list[Path], classes: list[str], path: Path, mode: str) -> Files:
    """ImageNet's validation images, whose classes stand in a table beside them. Raises: UserError."""
    table = next(
        (p for p in (path / "LOC_val_solution.csv", path.parent / "LOC_val_solution.csv") if p.is_file()), None
    )
    if table is None:
        raise UserError(
            f"the classes of the images in {files[0].parent} are not known",
            help="a folder for each class, or ImageNet's LOC_val_solution.csv beside ILSVRC",
        )
    with open(table, newline="", encoding="utf-8") as f:
        named = {row[0]: _WORDNET.match(row[1]) for row in csv.reader(f) if len(row) > 1}
    labels = []
    for file in files:
        found = named.get(file.stem)
        if found is None or found[0] not in classes:
            raise UserError(f"{table} has no class for {file.name}")
        labels.append(classes.index(found[0]))
    return Files(files, np.asarray(labels, np.int32), mode)


def _bytes(values: np.ndarray, path: Path) -> np.ndarray:
    """Pictures of 8 bits; floats are taken from 0 to their largest. Raises: UserError."""
    if values.dtype == np.uint8:
        return values
    top = float(values.max())
    if float(values.min()) < 0 or not np.isfinite(top) or top == 0:
        raise UserError(f"the images of {path} have values from {values.min()} to {top}", help="0 to 255, or 0 to 1")
    return np.rint(values * (255 / top)).astype(np.uint8)
