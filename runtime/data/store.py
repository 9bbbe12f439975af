"""A corpus as token ids on disk, memory-mapped: tokenised once, any size, instantly there the next time."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .corpus import Corpus, Document
from .tokenizers import Tokenizer

VERSION = 1
"""Of the files below; part of the key, so that a newer layout never reads an older one's files."""

SIDES = ("train", "heldout")

Report = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) while a corpus is tokenised."""


@dataclass(frozen=True)
class Side:
    """One side of the split.

    tokens   memory-mapped ids [tokens], uint8, uint16 or uint32 as the vocabulary needs; the documents one
             after the other, each with the tokenizer's bos before and eos after it where it has them
    offsets  int64 [documents + 1]: document i is tokens[offsets[i]:offsets[i + 1]]
    bytes    of text in all documents
    """

    tokens: np.ndarray
    offsets: np.ndarray
    bytes: int

    @property
    def documents(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class Store:
    """A tokenised corpus. `digest` is equal when tokens and documents are, wherever the files came from."""

    digest: str
    train: Side
    heldout: Side


def open_store(corpus: Corpus, tokenizer: Tokenizer, cache: str | Path, report: Report | None = None) -> Store:
    """The store of this corpus and tokenizer in `cache`, made if it isn't there.

    It is made beside its place and renamed, so a killed process leaves none half done; processes that want
    the same one wait for the first. The key holds every document's name, size and modification time: changed
    text makes a new store (old ones stay until somebody deletes them).

    Raises UserError when the disk is full, a file can't be read, or one side holds no tokens.
    """
    key = _key(corpus, tokenizer)
    cache = Path(cache)
    folder = cache / f"tokens-{key}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if not _whole(folder):
            with _lock(cache / f"tokens-{key}.lock"):
                if not _whole(folder):
                    _make(folder, corpus, tokenizer, report)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"the disk is full: the tokens of {corpus.name} don't fit in {cache}",
                help="free some space or choose another cache folder",
            ) from error
        raise UserError(f"can't write the token cache in {cache}: {error.strerror or error}") from error
    facts = json.loads((folder / "store.json").read_text())
    sides = [_open(folder, side, facts[side]) for side in SIDES]
    for name, side in zip(SIDES, sides):
        if not len(side.tokens):
            raise UserError(f"the {name} documents of {corpus.name} hold no tokens", help="give more text")
    return Store(facts["digest"], *sides)


def _key(corpus: Corpus, tokenizer: Tokenizer) -> str:
    def identity(document: Document) -> list[str | int]:
        name = document.name.encode(errors="surrogateescape").hex()
        return [name, document.start, document.stop, document.mtime]

    parts = [VERSION, tokenizer.fingerprint, tokenizer.bos, tokenizer.eos]
    parts += [[identity(d) for d in side] for side in (corpus.train, corpus.heldout)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclass
class _Facts:
    dtype: str
    tokens: int
    documents: int
    bytes: int


def _make(folder: Path, corpus: Corpus, tokenizer: Tokenizer, report: Report | None) -> None:
    for stale in folder.parent.glob(f"{folder.name}.part-*"):
        shutil.rmtree(stale, ignore_errors=True)
    beside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=folder.parent))
    try:
        total = sum(d.stop - d.start for d in (*corpus.train, *corpus.heldout))
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if report:
                report(done, total)

        digest = hashlib.sha256()
        facts: dict[str, Any] = {
            "train": asdict(_write(beside, "train", corpus.train, tokenizer, digest, advance)),
            "heldout": asdict(_write(beside, "heldout", corpus.heldout, tokenizer, digest, advance)),
        }
        facts["digest"] = digest.hexdigest()
        (beside / "store.json").write_text(json.dumps(facts, indent=1))
        os.chmod(beside, 0o755)
        if folder.exists():  # there, but not whole
            shutil.rmtree(folder)
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _write(
    folder: Path,
    side: str,
    documents: tuple[Document, ...],
    tokenizer: Tokenizer,
    digest: hashlib._Hash,
    advance: Callable[[int], None],
) -> _Facts:
    dtype = np.dtype(
        "uint8" if tokenizer.vocab_size <= 1 << 8 else "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    )
    offsets = [0]
    size = 0
    with open(folder / f"{side}.bin", "wb") as file:

        def put(ids: Any) -> int:
            array = np.asarray(ids, dtype)
            file.write(array.data)
            digest.update(array.data)
            return len(array)

        for document in documents:
            count = put([tokenizer.bos]) if tokenizer.bos is not None else 0
            for chunk in document.chunks():
                count += put(tokenizer.encode(chunk))
                size += len(chunk)
                advance(len(chunk))
            count += put([tokenizer.eos]) if tokenizer.eos is not None else 0
            offsets.append(offsets[-1] + count)
        file.flush()
        os.fsync(file.fileno())
    digest.update(np.asarray(offsets, np.int64).data)
    np.save(folder / f"{side}.npy", np.asarray(offsets, np.int64), allow_pickle=False)
    return _Facts(dtype.name, offsets[-1], len(documents), size)


def _whole(folder: Path) -> bool:
    """Whether the files are there with the lengths that they should have."""

    def size(facts: dict[str, Any]) -> int:
        return int(facts["tokens"]) * np.dtype(facts["dtype"]).itemsize

    try:
        facts = json.loads((folder / "store.json").read_text())
        return all(
            (folder / f"{side}.bin").stat().st_size == facts[side]["tokens"] * np.dtype(facts[side]["dtype"]).itemsize
            and (folder / f"{side}.npy").is_file()
            for side in SIDES
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _open(folder: Path, side: str, facts: dict[str, Any]) -> Side:
    dtype = np.dtype(facts["dtype"])
    file = folder / f"{side}.bin"
    tokens = np.memmap(file, dtype, "r") if facts["tokens"] else np.zeros(0, dtype)  # an empty file can't be mapped
    return Side(tokens, np.load(folder / f"{side}.npy", allow_pickle=False), facts["bytes"])


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
