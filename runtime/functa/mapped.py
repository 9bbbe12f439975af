"""Arrays in safetensors files, read where they lie: only what is asked for comes into memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

DTYPES = {"F32": np.float32, "F64": np.float64, "I32": np.int32, "I64": np.int64}


def mapped(file: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of a file, memory-mapped. Raises: OSError, SafetensorError for a damaged file, KeyError."""
    with safe_open(file, "np"):
        pass  # which checks the header against the file
    with open(file, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(length))
    found = {}
    for name in names:
        told = header[name]
        dtype, shape = np.dtype(DTYPES[told["dtype"]]), tuple(told["shape"])
        empty = 0 in shape  # which can't be mapped
        found[name] = np.empty(shape, dtype) if empty else np.memmap(
            file, dtype, "r", 8 + length + told["data_offsets"][0], shape
        )  # fmt: skip
    return found


class Joined:
    """Arrays [rows, ..] one after another as one, which is nowhere as a whole: `joined[i]`, `joined[a:b]` and
    `joined[index]`, int[n], read these rows."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = list(parts)
        self.first = np.cumsum([0, *(len(p) for p in parts)])
        self.shape = (int(self.first[-1]), *self.parts[0].shape[1:])
        self.dtype: np.dtype[Any] = self.parts[0].dtype
        self.ndim = self.parts[0].ndim

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        index = np.asarray(rows)
        where = np.searchsorted(self.first, index, "right") - 1
        out = np.empty((*index.shape, *self.shape[1:]), self.dtype)
        for n in np.unique(where):
            mine = where == n
            out[mine] = self.parts[n][index[mine] - self.first[n]]
        return out
