"""Folders of safetensors files: one tensor in memory at a time, whatever the folder weighs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .errors import UserError

SHARD = 256 << 20
"""Bytes of one file, larger only where a single tensor is: what is held in memory while writing."""


class TensorFolder(Mapping[str, np.ndarray]):
    """The tensors of all `*.safetensors` in a folder, by name; each access reads one from disk.

    Raises: UserError for a folder without such files, a damaged file, or a name that two files hold.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise UserError(
                f"{folder} holds no .safetensors files", help="pickled checkpoints are not loaded: convert them first"
            )
        self._place: dict[str, Path] = {}
        self._shape: dict[str, tuple[int, ...]] = {}
        for file in files:
            try:
                with safe_open(file, "np") as f:
                    for name in f.keys():  # noqa: SIM118 - safe_open is no mapping
                        if name in self._place:
                            raise UserError(f"`{name}` is in {self._place[name].name} and in {file.name}")
                        self._place[name] = file
                        self._shape[name] = tuple(f.get_slice(name).get_shape())
            except (SafetensorError, OSError) as e:
                raise UserError(f"{file} is damaged: {e}", help="copy it again") from e
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            self._check(index)

    def _check(self, index: Path) -> None:
        """A shard that is listed but not there is a download that was cut short."""
        try:
            listed: dict[str, str] = json.loads(index.read_text())["weight_map"]
        except (ValueError, KeyError) as e:
            raise UserError(f"{index} is damaged: {e}") from e
        lost = sorted({f for f in listed.values() if not (self.folder / f).exists()})
        if lost:
            raise UserError(f"{self.folder} lacks {', '.join(lost)}", help=f"{index.name} lists it: copy it too")

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shape[name]

    def __getitem__(self, name: str) -> np.ndarray:
        with safe_open(self._place[name], "np") as f:
            array: np.ndarray = f.get_tensor(name)
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._place  # a mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)


class TensorWriter:
    """Writes tensors into numbered files of about `SHARD` bytes and the index that lists them.

    Names and order decide the bytes. Use as a context; nothing is complete before it ends.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._batch: dict[str, np.ndarray] = {}
        self._held = self._total = 0
        self._parts: list[list[str]] = []

    def add(self, name: str, array: np.ndarray) -> None:
        if self._batch and self._held + array.nbytes > SHARD:
            self._flush()
        self._batch[name] = np.ascontiguousarray(array)
        self._held += array.nbytes
        self._total += array.nbytes

    def _flush(self) -> None:
        if self._batch:
            self._save(f"part-{len(self._parts)}")
            self._parts.append(list(self._batch))
            self._batch, self._held = {}, 0

    def _save(self, stem: str) -> None:
        try:
            save_file(self._batch, self.folder / f"{stem}.safetensors", metadata={"format": "pt"})
        except OSError as e:
            raise UserError(f"can't write in {self.folder}: {e.strerror or e}") from e

    def __enter__(self) -> TensorWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, failed: Any, *_: object) -> None:
        if failed:
            return
        self._flush()
        n = len(self._parts)
        where: dict[str, str] = {}
        for i, names in enumerate(self._parts):
            final = "model.safetensors" if n == 1 else f"model-{i + 1:05}-of-{n:05}.safetensors"
            (self.folder / f"part-{i}.safetensors").rename(self.folder / final)
            where.update(dict.fromkeys(names, final))
        if n > 1:
            index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(where.items()))}
            (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
