"""Which files a corpus is, and which of its documents are held out."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

CHUNK = 1 << 22
"""Bytes of a document read at once, so that one file may be larger than memory."""

HELDOUT = 0.05
"""Share of the documents held out when the caller doesn't say."""


@dataclass(frozen=True)
class Document:
    """A file, or a part of one.

    name   relative path with forward slashes; decides on which side of the split the document falls
    start  first byte
    stop   byte after the last
    mtime  nanoseconds; with name and size it tells whether the file is still the same
    """

    path: Path
    name: str
    start: int
    stop: int
    mtime: int

    def chunks(self, size: int = CHUNK) -> Iterator[bytes]:
        """The bytes in pieces of about `size`, cut after a line where there is one, never inside a character.

        Raises UserError when the file can't be read or is shorter than it was.
        """
        try:
            with open(self.path, "rb") as file:
                file.seek(self.start)
                left = self.stop - self.start
                rest = b""
                while left:
                    piece = file.read(min(size, left))
                    if not piece:
                        raise UserError(f"{self.path} became shorter while it was read", help="start again")
                    left -= len(piece)
                    rest += piece
                    cut = len(rest) if not left else _cut(rest)
                    yield rest[:cut]
                    rest = rest[cut:]
        except OSError as error:
            raise UserError(f"can't read {self.path}: {error.strerror}") from error


@dataclass(frozen=True)
class Corpus:
    """name     for messages
    train    documents to train on, in order
    heldout  documents kept back, in order; none of them is in train
    """

    name: str
    train: tuple[Document, ...]
    heldout: tuple[Document, ...]


def stdlib_corpus(heldout: float = HELDOUT) -> Corpus:
    """The source of the running Python's own standard library: real text that every machine has."""
    root = Path(sysconfig.get_path("stdlib"))
    documents = _walk(root, ("*.py",), without=("site-packages", "dist-packages"))
    if len(documents) < 2:
        raise UserError(
            f"this Python has no library source in {root}",
            help="give text of your own",
        )
    name = f"the standard library of Python {sysconfig.get_python_version()}"
    return Corpus(name, *_split(documents, heldout))


def read_corpus(
    paths: str | Path | Sequence[str | Path] | None = None,
    patterns: Sequence[str] = ("*",),
    heldout: float = HELDOUT,
) -> Corpus:
    """Finds the documents of a corpus; reads nothing but the first bytes of each.

    paths     a file, a folder (searched through; hidden files and folders are passed over), or several; None
              for the standard library's source
    patterns  shell patterns that a file in a folder must match one of, by name ("*.txt") or by path
              ("docs/*"). With the default one, files that look binary (a zero byte near the start) are passed
              over
    heldout   share of the documents, by a hash of their names, so that a growing corpus never moves a
              document over. Of two documents or more, each side gets at least one; a single one is cut in
              two, its end held out

    Raises UserError for a path that doesn't exist or holds no text.
    """
    if not 0 < heldout < 1:
        raise UserError(f"the held-out share must lie between 0 and 1, not {heldout}")
    if paths is None:
        return stdlib_corpus(heldout)
    roots = [Path(p) for p in ([paths] if isinstance(paths, (str, Path)) else paths)]
    documents: list[Document] = []
    for root in roots:
        if root.is_dir():
            documents += _walk(root, tuple(patterns))
        elif root.is_file():
            documents += _document(root, root.name)
        else:
            raise UserError(f"there is no text at {root}", help="give a text file or a folder of text files")
    if not documents:
        raise UserError(
            f"no text in {', '.join(map(str, roots))} (files that match {', '.join(patterns)})",
            help="check the folder and the pattern; empty, hidden and binary files don't count",
        )
    name = ", ".join(root.name or str(root) for root in roots)
    return Corpus(name, *(_split(documents, heldout) if len(documents) > 1 else _cut_in_two(documents[0], heldout)))


def _walk(root: Path, patterns: tuple[str, ...], without: tuple[str, ...] = ()) -> list[Document]:
    found: list[Document] = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in without)
        for file in files:
            path = Path(folder, file)
            name = path.relative_to(root).as_posix()
            if file.startswith(".") or not any(fnmatch.fnmatchcase(n, p) for p in patterns for n in (file, name)):
                continue
            if path.is_file() and not (patterns == ("*",) and _binary(path)):
                found += _document(path, name)
    return sorted(found, key=lambda document: document.name.encode(errors="surrogateescape"))


def _document(path: Path, name: str) -> list[Document]:
    stat = path.stat()
    return [Document(path, name, 0, stat.st_size, stat.st_mtime_ns)] if stat.st_size else []


def _binary(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return b"\0" in file.read(8192)
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from error


def _split(documents: list[Document], share: float) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    def place(document: Document) -> float:
        digest = hashlib.blake2b(document.name.encode(errors="surrogateescape"), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64

    places = [place(document) for document in documents]
    out = [p < share for p in places]
    if not any(out):
        out[places.index(min(places))] = True
    if all(out):
        out[places.index(max(places))] = False
    return (
        tuple(d for d, held in zip(documents, out) if not held),
        tuple(d for d, held in zip(documents, out) if held),
    )


def _cut_in_two(document: Document, share: float) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """At the start of a line if there is one within a chunk, else at a character."""
    middle = document.stop - max(1, int((document.stop - document.start) * share))
    tail = Document(document.path, document.name, middle, document.stop, document.mtime)
    piece = next(tail.chunks(), b"")
    line = piece.find(b"\n") + 1
    while not line and middle < document.stop - 1 and piece[:1] and piece[0] & 0xC0 == 0x80:
        piece, middle = piece[1:], middle + 1
    if 0 < line < document.stop - middle:
        middle += line
    if middle <= document.start:
        raise UserError(f"{document.path} is too short to train on")
    return (
        (Document(document.path, document.name, document.start, middle, document.mtime),),
        (Document(document.path, document.name, middle, document.stop, document.mtime),),
    )


def _cut(text: bytes) -> int:
    """Where to cut: after the last line, else before the character that the end may have split (the last four
    bytes at most); at the end when neither is possible."""
    line = text.rfind(b"\n") + 1
    if line:
        return line
    for back in range(1, min(4, len(text)) + 1):
        if text[-back] & 0xC0 != 0x80:  # the first byte of a character
            return len(text) - back or len(text)
    return len(text)
