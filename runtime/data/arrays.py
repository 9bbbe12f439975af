"""Arrays for every other model: images and labels, coordinates and colours, whatever its inputs are."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import grain
import numpy as np

from ..errors import UserError
from .source import Batch, Batches, Share, sequential

SPLIT_SEED = 20110
"""Of the permutation that says which rows are held out; no run's own seed changes it."""


def load_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Named arrays of an .npz, of a folder of .npy files (memory-mapped, named by file), or of one .npy.

    Pickled objects are refused. Raises UserError for anything else than arrays of numbers.
    """
    path = Path(path)
    files = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise UserError(f"there are no arrays at {path}", help="give an .npz, an .npy, or a folder of .npy files")
    found: dict[str, np.ndarray] = {}
    for file in files:
        try:
            if file.suffix == ".npz":
                with np.load(file, allow_pickle=False) as members:
                    found.update({name: members[name] for name in members.files})
            else:
                found[file.stem] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{file} holds no arrays that can be read: {error}") from error
    return found


def split(rows: int, portion: float, need: str) -> tuple[Sequence[int], Sequence[int]]:
    """The rows to train on and `portion` of them that are held out, the same for every seed. Raises: UserError, which
    begins with `need`, where there are less than two."""
    if rows < 2:
        raise UserError(f"{need} or more, one to train on and one held out")
    kept = rows - min(max(round(rows * portion), 1), rows - 1)
    order = grain.MapDataset.range(rows).shuffle(seed=SPLIT_SEED)
    return order[:kept], order[kept:]


def some(rows: int) -> list[int]:
    """A few rows that tell one data set from another without reading all of it."""
    return sorted({0, rows // 3, rows // 2, rows - 1})


class Column(Protocol):
    """One array's rows, in memory or where they lie: an ndarray, or what reads as one along its first axis."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def ndim(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


class ArrayData:
    """Batches of rows of named arrays; a DataSource.

    arrays   name -> [rows, ...]; equal numbers of rows. Names are the graph's inputs
    share    the global batch and this process's part of it
    seed     of the order of the training rows, 0 to 2**32 - 1
    heldout  other arrays with the same names to evaluate on; else `portion` of the rows, chosen by a
             permutation that is the same for every seed
    source   for messages

    Raises UserError when rows, names or shapes don't agree.
    """

    def __init__(
        self,
        arrays: Mapping[str, Column],
        share: Share,
        seed: int = 0,
        heldout: Mapping[str, Column] | None = None,
        portion: float = 0.05,
        source: str = "the arrays",
    ) -> None:
        rows = _rows(arrays, source)
        if heldout is None:
            self._train, self._heldout = (
                Rows(arrays, order) for order in split(rows, portion, f"{source} need 2 rows")
            )
        else:
            mine = {name: (a.shape[1:], a.dtype) for name, a in arrays.items()}
            theirs = {name: (a.shape[1:], a.dtype) for name, a in heldout.items()}
            if mine != theirs:
                raise UserError(f"the held-out arrays have other names, shapes or types than {source}")
            self._train = Rows(arrays, range(rows))
            self._heldout = Rows(heldout, range(_rows(heldout, "the held-out arrays")))
        self.share = share
        self._source = source
        self._inputs = {name: f"{a.dtype.name}{list(a.shape[1:])}" for name, a in sorted(arrays.items())}
        self._batches = Batches(self._train, share, seed)
        digest = hashlib.sha256(f"{self._inputs} {rows} {share.batch} {seed} {portion}".encode())
        for name in sorted(arrays):
            for row in some(rows):
                digest.update(np.ascontiguousarray(arrays[name][row]).tobytes())
        self._fingerprint = digest.hexdigest()[:16]

    def batch_of(self, rows: Batch) -> Batch:
        """What the model gets of some rows: these themselves, unless a source says otherwise."""
        return rows

    def batch(self, step: int) -> Batch:
        return self.batch_of(self._batches[step])

    def batches(self, start: int = 0) -> Iterator[Batch]:
        rows = self._batches.iterate(start)
        try:
            for one in rows:
                yield self.batch_of(one)
        finally:
            rows.close()  # type: ignore[attr-defined]

    def heldout(self, count: int) -> Iterator[Batch]:
        return map(self.batch_of, sequential(self._heldout, self.share, count))

    def part(self, split: str) -> Rows:
        """The rows of `train` or `heldout`, in the order of their permutation."""
        return {"train": self._train, "heldout": self._heldout}[split]

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "arrays",
            "source": self._source,
            "inputs": self._inputs,
            "train": {"rows": len(self._train)},
            "heldout": {"rows": len(self._heldout)},
            "fingerprint": self._fingerprint,
        }


class Rows:
    """Rows of arrays as examples: example i is row order[i]."""

    def __init__(self, arrays: Mapping[str, Column], order: Sequence[int]) -> None:
        self._arrays = dict(arrays)
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def order(self, indices: np.ndarray) -> np.ndarray:
        """The rows behind examples, int64[n]."""
        return np.asarray([self._order[int(i)] for i in indices], np.int64)

    def take(self, indices: np.ndarray) -> Batch:
        rows = self.order(indices)
        return {name: np.asarray(array[rows]) for name, array in self._arrays.items()}


def _rows(arrays: Mapping[str, Column], source: str) -> int:
    if not arrays:
        raise UserError(f"{source} are empty")
    for name, array in arrays.items():
        if not array.ndim or array.dtype.kind not in "biufcV":
            raise UserError(f"{name} of {source} is {array.dtype} {list(array.shape)}; rows of numbers are needed")
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1 or not min(counts.values()):
        shown = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise UserError(f"{source} have different numbers of rows, or none ({shown})")
    return next(iter(counts.values()))
