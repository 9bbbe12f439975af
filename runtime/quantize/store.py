"""Rounded matrices on disk: each is rounded once, however often the model is written with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from planform.backends.onnx.quantization import Rounded, Scheme, rounded


class Store:
    """In a scratch folder; `round` is what a Quantization asks."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder

    def _path(self, name: str, scheme: Scheme) -> Path:
        digest = hashlib.sha256(name.encode()).hexdigest()[:24]
        return self._folder / f"{digest}.{scheme.kind}.{scheme.block}.npz"

    def holds(self, name: str, scheme: Scheme) -> bool:
        return self._path(name, scheme).exists()

    def put(self, name: str, scheme: Scheme, w: np.ndarray, moments: np.ndarray | None) -> None:
        """Rounds a matrix [out, in]."""
        r = rounded(w, scheme.levels, scheme.block or w.shape[1], moments)
        np.savez(self._path(name, scheme), codes=r.codes, scales=r.scales, block=np.int64(r.block))

    def round(self, name: str, matrix: Callable[[], np.ndarray], scheme: Scheme) -> Rounded:
        """The matrix of that name as rounded before; alone, where calibration never met it."""
        if not self.holds(name, scheme):
            self.put(name, scheme, matrix(), None)
        with np.load(self._path(name, scheme), allow_pickle=False) as found:
            return Rounded(found["codes"], found["scales"], int(found["block"]))
