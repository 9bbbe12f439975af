"""Image collections in the files that they are published in: IDX (MNIST, Fashion-MNIST) and CIFAR's binary version."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from ..errors import UserError

Signals = dict[str, np.ndarray]
"""`values` [rows, height, width, channels] and `labels` int32[rows]."""

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CIFAR_ROW = 3 * 32 * 32


def published(folder: Path) -> tuple[Signals, Signals] | None:
    """What there is to train on and what is held out, where a folder holds one of these; None elsewhere.

    Raises: UserError for files that are damaged or incomplete.
    """
    if next(folder.glob("train-images*-ubyte*"), None):
        return _idx_pair(folder, "train"), _idx_pair(folder, "t10k")
    for train, test, labels in (("data_batch_*.bin", "test_batch.bin", 1), ("train.bin", "test.bin", 2)):
        files = sorted(folder.glob(train))
        if files and (folder / test).is_file():
            return _cifar(files, labels), _cifar([folder / test], labels)
    return None


def read_idx(path: Path) -> np.ndarray:
    """The array of an IDX file, gzipped or not. Raises: UserError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as f:
            data = f.read()
    except (OSError, EOFError) as error:
        raise UserError(f"{path} can't be read: {error}") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _TYPES or len(data) < 4 + 4 * data[3]:
        raise UserError(f"{path} is no IDX file")
    dtype, start = np.dtype(_TYPES[data[2]]), 4 + 4 * data[3]
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", data[3], 4))
    if len(data) - start != dtype.itemsize * np.prod(shape, dtype=object):
        raise UserError(f"{path} is damaged: it should hold {list(shape)}")
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def _idx_pair(folder: Path, part: str) -> Signals:
    found = {}
    for what in ("images", "labels"):
        file = next(iter(sorted(folder.glob(f"{part}-{what}*-ubyte*"))), None)
        if file is None:
            raise UserError(f"there is no {part}-{what} beside the others in {folder}")
        found[what] = read_idx(file)
    if found["images"].ndim != 3 or found["labels"].shape != found["images"].shape[:1]:
        raise UserError(f"{folder} holds {part} images {list(found['images'].shape)} for {len(found['labels'])} labels")
    return {"values": found["images"][..., None], "labels": found["labels"].astype(np.int32)}


def _cifar(files: list[Path], labels: int) -> Signals:
    """Rows of label bytes, of which the last is the finest, and 3 planes of 32 x 32."""
    parts = []
    for file in files:
        rows = np.fromfile(file, np.uint8)
        if not len(rows) or len(rows) % (labels + _CIFAR_ROW):
            raise UserError(f"{file} is no whole number of images of 32 x 32")
        parts.append(rows.reshape(-1, labels + _CIFAR_ROW))
    rows = np.concatenate(parts)
    planes = rows[:, labels:].reshape(-1, 3, 32, 32)
    return {
        "values": np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
        "labels": rows[:, labels - 1].astype(np.int32),
    }
