"""Images with labels: cut out, mirrored and normalised for training, from their centre where they are held out."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import UserError
from .arrays import split
from .pictures import Picture, Pictures
from .source import Batch, Batches, Share, sequential


@dataclass(frozen=True)
class View:
    """How the model sees a picture.

    size    of a side, in pixels; None: pictures as they are
    crop    in training, the least part of its area that is cut out: between this and all of it, its sides 3:4 to 4:3
            (Szegedy et al., arXiv:1409.4842, section 6), scaled to `size`. None: none is
    shift   in training, moved by up to so many pixels along both axes, zeros from beyond the border
    flip    in training, mirrored half the time
    centre  the part of the shorter side that is seen of what isn't cut out at random: 0.875 is 224 of 256
    mean, std  of each channel, taken off and divided by; values lie between 0 and 1 before

    Raises: UserError.
    """

    size: int | None = None
    crop: float | None = None
    shift: int = 0
    flip: bool = False
    centre: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.crop is not None and not 0 < self.crop <= 1:
            raise UserError(f"`crop` is the least part of a picture's area, from 0 to 1, not {self.crop}")
        if not 0 < self.centre <= 1:
            raise UserError(f"`centre` is a part of the shorter side, from 0 to 1, not {self.centre}")
        if self.size is None and (self.crop is not None or self.centre != 1):
            raise UserError("pictures that are cut out need a `size`", help="images(image, label, size=224, crop=0.08)")
        if not all(s > 0 for s in self.std):
            raise UserError(f"`std` is what is divided by, it can't be {list(self.std)}")

    def centred(self, image: Picture) -> np.ndarray:
        """A picture from its centre, float32[height, width, channels]."""
        return self._normalised(np.asarray(self._middle(image)))

    def drawn(self, image: Picture, rng: np.random.Generator) -> np.ndarray:
        """A picture as training sees it."""
        if self.crop is not None:
            pixels = np.asarray(self._resized(image, self._box(image, rng)))
        else:
            pixels = np.asarray(self._middle(image))
        if self.shift:
            pixels = shifted(pixels, *rng.integers(-self.shift, self.shift + 1, 2))
        if self.flip and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        return self._normalised(pixels)

    def restored(self, values: np.ndarray) -> np.ndarray:
        """Values from 0 to 1 again, of what a model made of pictures as it sees them, [.., channels]."""
        return values * np.asarray(self.std, np.float32) + np.asarray(self.mean, np.float32)

    def _box(self, image: Picture, rng: np.random.Generator) -> tuple[float, ...]:
        """Left, top, right, bottom; the centre where no such part fits in ten draws."""
        assert self.crop is not None
        w, h = image.size
        for _ in range(10):
            area = w * h * rng.uniform(self.crop, 1)
            ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < width <= w and 0 < height <= h:
                left, top = rng.integers(0, w - width + 1), rng.integers(0, h - height + 1)
                return left, top, left + width, top + height
        return _square(w, h, 1.0)

    def _middle(self, image: Picture) -> Picture:
        w, h = image.size
        return image if self.size is None else self._resized(image, _square(w, h, self.centre))

    def _resized(self, image: Picture, box: tuple[float, ...]) -> Picture:
        from PIL import Image

        if box == (0, 0, self.size, self.size) == (0, 0, *image.size):
            return image
        return image.resize((self.size, self.size), Image.Resampling.BILINEAR, box)

    def _normalised(self, pixels: np.ndarray) -> np.ndarray:
        pixels = pixels if pixels.ndim == 3 else pixels[..., None]
        scale = 1 / (255 * np.asarray(self.std, np.float32))
        found: np.ndarray = pixels * scale - np.asarray(self.mean, np.float32) / np.asarray(self.std, np.float32)
        return found.astype(np.float32)


def _square(w: int, h: int, part: float) -> tuple[float, ...]:
    """The square in the middle, of a part of the shorter side."""
    side = min(w, h) * part
    return (w - side) / 2, (h - side) / 2, (w + side) / 2, (h + side) / 2


def shifted(pixels: np.ndarray, down: int, right: int) -> np.ndarray:
    """[height, width, ..] moved, with zeros from beyond the border."""
    found = np.zeros_like(pixels)
    h, w = pixels.shape[:2]
    ours = slice(max(down, 0), h + min(down, 0)), slice(max(right, 0), w + min(right, 0))
    theirs = slice(max(-down, 0), h + min(-down, 0)), slice(max(-right, 0), w + min(-right, 0))
    found[ours] = pixels[theirs]
    return found


class ImageData:
    """Batches of images and perhaps labels; a DataSource.

    found    pictures, and those that are held out; else `portion` of them are, the same for every seed
    fields   names of the images and, if there is a second, the labels
    view     how they are seen; draws are a function of the seed and of the example's place in the run alone

    Raises: UserError where labels are asked for and there are none.
    """

    def __init__(
        self,
        found: tuple[Pictures, Pictures | None],
        fields: tuple[str, ...],
        view: View,
        share: Share,
        seed: int = 0,
        portion: float = 0.05,
        source: str = "the images",
    ) -> None:
        train, heldout = found
        if len(fields) > 1 and any(p is not None and p.labels is None for p in found):
            raise UserError(f"{source} have no labels", help="an array `labels`, or a folder for each class")
        order: Any
        if heldout is None:
            order, apart = split(len(train), portion, f"{source} need 2 pictures")
            heldout = train
        else:
            order, apart = range(len(train)), range(len(heldout))
        self.share = share
        self._source, self._view = source, view
        self._classes = 0 if train.labels is None else int(train.labels.max(initial=-1)) + 1
        self._train = _Seen(train, order, view, fields, seed)
        self._heldout = _Seen(heldout, apart, view, fields)
        self._batches = Batches(self._train, share, seed, self._train.draw)
        told = f"{asdict(view)} {train.told()} {heldout.told()} {len(order)} {share.batch} {seed}"
        self._fingerprint = hashlib.sha256(told.encode()).hexdigest()[:16]

    def batch(self, step: int) -> Batch:
        return self._batches[step]

    def batches(self, start: int = 0) -> Iterator[Batch]:
        threads = min(os.cpu_count() or 1, 16)
        return self._batches.iterate(start, threads, 2 * threads)

    def heldout(self, count: int) -> Iterator[Batch]:
        return sequential(self._heldout, self.share, count)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "images",
            "source": self._source,
            "view": asdict(self._view),
            "train": {"rows": len(self._train)},
            "heldout": {"rows": len(self._heldout)},
            "classes": self._classes,
            "fingerprint": self._fingerprint,
        }


class _Seen:
    """Pictures as examples: example i is picture order[i]."""

    def __init__(self, pictures: Pictures, order: Any, view: View, fields: tuple[str, ...], seed: int = 0) -> None:
        self._pictures, self._order, self._view, self._fields, self._seed = pictures, order, view, fields, seed

    def __len__(self) -> int:
        return len(self._order)

    def take(self, indices: np.ndarray) -> Batch:
        """Seen from their centre."""
        return self._batch(indices, [self._view.centred(self._read(i)) for i in indices])

    def draw(self, indices: np.ndarray, places: np.ndarray) -> Batch:
        """As training sees them at their places in the run."""
        rngs = (np.random.Generator(np.random.Philox(key=[self._seed, int(p)])) for p in places)
        return self._batch(indices, [self._view.drawn(self._read(i), rng) for i, rng in zip(indices, rngs)])

    def _read(self, i: Any) -> Picture:
        return self._pictures.read(int(self._order[int(i)]))

    def _batch(self, indices: np.ndarray, seen: list[np.ndarray]) -> Batch:
        found = {self._fields[0]: np.stack(seen)}
        if len(self._fields) > 1:
            labels = self._pictures.labels
            assert labels is not None
            found[self._fields[1]] = labels[[int(self._order[int(i)]) for i in indices]]
        return found
