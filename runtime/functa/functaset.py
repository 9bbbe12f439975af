"""Functasets: latents on disk, with what they are of and the field that reads them.

functaset.json              what it is, and the statistics of its latents; written last
encoding.json               what is being encoded, until then
train-00000.safetensors     `latent`, `index` (the signal's row in its source), `labels` where there are some, and
heldout-00000.safetensors   `loss` and the metrics of each
field/                      the field: a run's folder, without its optimizer
psnr.png                    PSNR over the field's training and over the steps that fit a latent, where it is measured
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..errors import UserError
from ..files import whole, write_json
from .mapped import Joined, mapped

FILE, UNFINISHED, FIELD, CURVE = "functaset.json", "encoding.json", "field", "psnr.png"
VERSION = 1
SPLITS = ("train", "heldout")

Arrays = dict[str, np.ndarray]


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:05}.safetensors"


def is_functaset(folder: str | Path) -> bool:
    return (Path(folder) / FILE).is_file()


@dataclass(frozen=True)
class Functaset:
    """A functaset that is whole; `told` is its description."""

    folder: Path
    told: Mapping[str, Any]

    @staticmethod
    def open(folder: str | Path) -> Functaset:
        """Raises: UserError where there is none, it isn't finished, or it is damaged."""
        folder = Path(folder)
        if not is_functaset(folder):
            unfinished = (folder / UNFINISHED).is_file()
            raise UserError(
                f"{folder} is {'a functaset that is not finished' if unfinished else 'no functaset'}",
                help="the same `planform functa encode` goes on with it" if unfinished
                else "planform functa encode RUN --out FOLDER makes one",
            )  # fmt: skip
        told = _read_json(folder / FILE)
        if told.get("version") != VERSION:
            raise UserError(f"{folder} was written by another version of this program", help="encode it again")
        return Functaset(folder, told)

    def rows(self, split: str) -> int:
        return int(self.told["splits"][split]["rows"])

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.told["latent"]["shape"])

    @cached_property
    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """(mean, standard deviation) of each feature over the training latents."""
        s = self.told["statistics"]
        return np.asarray(s["mean"], np.float32), np.asarray(s["std"], np.float32)

    def mapped(self, split: str, names: Sequence[str] = ("latent",)) -> dict[str, Joined]:
        """Arrays of a split in the order of its signals, read from the files as they are asked for.

        Raises: UserError for a shard that is missing or damaged.
        """
        shards = []
        for number in range(self.told["splits"][split]["shards"]):
            file = self.folder / shard_name(split, number)
            with _damage(file):
                shards.append(mapped(file, names))
        found = {n: Joined([s[n] for s in shards]) for n in names if shards}
        if found and len(found[names[0]]) != self.rows(split):
            raise UserError(f"{self.folder} lacks some of its {self.rows(split)} {split} latents", help="encode again")
        return found

    def read(self, split: str, names: Sequence[str] = ("latent",)) -> Arrays:
        """The same as whole arrays. Raises: UserError."""
        return {n: array[:] for n, array in self.mapped(split, names).items()}

    def normalised(self, latents: np.ndarray) -> np.ndarray:
        mean, std = self.statistics
        return (latents - mean) / std

    def restored(self, latents: np.ndarray) -> np.ndarray:
        """Latents as the field takes them, from normalised ones."""
        mean, std = self.statistics
        return (latents * std + mean).astype(np.float32)


@contextmanager
def _damage(file: Path) -> Iterator[None]:
    """Raises: UserError where a shard can't be read."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{file} has no `{error.args[0]}`", help="encode signals that have some") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is missing or damaged: {error}", help="remove it and encode again") from error


def read_shard(file: Path) -> Arrays:
    """All arrays of a shard. Raises: UserError."""
    with _damage(file), safe_open(file, "np") as f:
        return {n: f.get_tensor(n) for n in list(f.keys())}


def shard_rows(file: Path) -> int | None:
    """How many latents a shard holds, from its header alone; None where it isn't whole."""
    try:
        with safe_open(file, "np") as f:
            return int(f.get_slice("latent").get_shape()[0])
    except (SafetensorError, OSError):
        return None


def write_shard(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises: UserError."""
    with whole(file) as f:
        f.write(save({n: np.ascontiguousarray(a) for n, a in arrays.items()}))


def begin(folder: Path, plan: Mapping[str, Any]) -> None:
    """Makes the folder, or goes on with one that was begun by the same plan. Raises: UserError for any other."""
    held = next((folder / f for f in (FILE, UNFINISHED) if (folder / f).is_file()), None)
    if held is not None:
        theirs = _read_json(held)
        other = [k for k in plan if theirs.get(k) != json.loads(json.dumps(plan[k]))]
        if other:
            raise UserError(
                f"{folder} holds latents of another {other[0]}", help="give another folder, or remove this one"
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} holds something that isn't a functaset", help="give a folder that doesn't exist yet")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"can't write {folder}: {error.strerror or error}") from error
    write_json(folder / UNFINISHED, plan)


def finish(folder: Path, told: Mapping[str, Any]) -> None:
    write_json(folder / FILE, told)
    (folder / UNFINISHED).unlink(missing_ok=True)
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)
    shutil.rmtree(folder / f".{FIELD}.part", ignore_errors=True)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged: {error}", help="remove the folder and encode again") from error
    if not isinstance(told, dict):
        raise UserError(f"{file} is damaged", help="remove the folder and encode again")
    return told
