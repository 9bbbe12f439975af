"""Text for language models: fixed windows over packed documents."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .bigram import bigram_bits_per_byte, count_pairs
from .corpus import Corpus, Document
from .source import Batch, Batches, Share, sequential
from .store import Report, Side, open_store
from .tokenizers import Tokenizer


class Windows:
    """Examples of `length` tokens over the documents of one side.

    Window i is tokens [i * (length - 1), i * (length - 1) + length): neighbours share one token, so that,
    with targets made inside a window (the next token of the same document), every token but a document's
    first is a target exactly once. Tokens after the last whole window are left out.

    take(indices) gives {name, "position", "document"}, int32 [n, length]: positions restart at each document
    and at the window's start, documents are numbered from 0 inside the window.
    """

    def __init__(self, side: Side, length: int, name: str) -> None:
        self._tokens = side.tokens
        self._starts = np.unique(side.offsets[:-1])  # an empty document shares its start with the next one
        self._length = length
        self.name = name

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // (self._length - 1)

    def take(self, indices: np.ndarray) -> Batch:
        first = np.asarray(indices, np.int64)[:, None] * (self._length - 1)
        place = first + np.arange(self._length)
        document = np.searchsorted(self._starts, place, side="right") - 1
        position = place - np.maximum(self._starts[document], first)
        return {
            self.name: self._tokens[place].astype(np.int32),
            "position": position.astype(np.int32),
            "document": (document - document[:, :1]).astype(np.int32),
        }


class TextData:
    """Batches of windows of text; a DataSource.

    corpus     what to read (`read_corpus`)
    tokenizer  how to cut it (`load_tokenizer`)
    length     tokens in a window, at least 2
    share      the global batch and this process's part of it
    cache      folder for the token store
    seed       of the order of the training windows, 0 to 2**32 - 1
    name       what the token input is called
    report     called with (bytes done, bytes in all) while the corpus is tokenised for the first time

    Batches are {name, "position", "document"}: int32 [share.local, length]; see Windows.
    Raises UserError when there is less text than one window.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        length: int,
        share: Share,
        cache: str | Path,
        seed: int = 0,
        name: str = "tokens",
        report: Report | None = None,
    ) -> None:
        if length < 2:
            raise UserError(f"a window of {length} tokens has nothing to predict", help="use 2 tokens or more")
        self.corpus, self.tokenizer, self.length, self.share = corpus, tokenizer, length, share
        store = open_store(corpus, tokenizer, cache, report)
        self._train, self._heldout = store.train, store.heldout
        self._windows = Windows(store.train, length, name)
        self._heldout_windows = Windows(store.heldout, length, name)
        for side, windows in (("training", self._windows), ("held-out", self._heldout_windows)):
            if not len(windows):
                raise UserError(
                    f"the {side} part of {corpus.name} is shorter than one window of {length} tokens",
                    help="give more text or make the window shorter",
                )
        self._batches = Batches(self._windows, share, seed)
        parts = f"{store.digest} {length} {share.batch} {seed}"
        self._fingerprint = hashlib.sha256(parts.encode()).hexdigest()[:16]

    def batch(self, step: int) -> Batch:
        return self._batches[step]

    def batches(self, start: int = 0) -> Iterator[Batch]:
        return self._batches.iterate(start)

    def heldout(self, count: int) -> Iterator[Batch]:
        return sequential(self._heldout_windows, self.share, count)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "text",
            "corpus": self.corpus.name,
            "tokenizer": self.tokenizer.name,
            "vocab": self.tokenizer.vocab_size,
            "length": self.length,
            "windows": len(self._windows),
            "train": {"documents": self._train.documents, "tokens": len(self._train.tokens)},
            "heldout": {"documents": self._heldout.documents, "tokens": len(self._heldout.tokens)},
            "bytes_per_token": self.bytes_per_token,
            "fingerprint": self._fingerprint,
        }

    @property
    def bytes_per_token(self) -> float:
        """Of the held-out text; tokens are those that are predicted and stand for text or a document's end.

        With a bos token that is every token but the bos; without one a document's first token isn't predicted
        and its bytes aren't counted (at the average size).
        """
        tokens = len(self._heldout.tokens)
        if self.tokenizer.bos is not None:
            tokens -= self._heldout.documents
        return self._heldout.bytes / max(tokens, 1)

    def bits_per_byte(self, loss: float) -> float:
        """From a mean loss in nats a token over held-out windows."""
        return loss / math.log(2) / self.bytes_per_token

    def bigram_bits_per_byte(self, count: int) -> float:
        """The bits per byte that a bigram model over the training text's bytes needs for held-out text.

        With the byte tokenizer on exactly the tokens that `heldout(count)` asks for, on all processes
        together; with another one on the whole held-out text.
        """
        if self.tokenizer.name != "bytes":
            return bigram_bits_per_byte(_file_pairs(self.corpus.train), _file_pairs(self.corpus.heldout))
        pairs = np.zeros(1 << 16, np.int64)
        for batch in sequential(self._heldout_windows, Share(self.share.batch), count):
            tokens = batch[self._windows.name].astype(np.uint8).reshape(-1)
            pairs += count_pairs(tokens, np.flatnonzero(batch["position"] == 0))
        return bigram_bits_per_byte(count_pairs(self._train.tokens, self._train.offsets), pairs)


def _file_pairs(documents: tuple[Document, ...]) -> np.ndarray:
    pairs = np.zeros(1 << 16, np.int64)
    for document in documents:
        for chunk in document.chunks():
            pairs += count_pairs(np.frombuffer(chunk, np.uint8))
    return pairs
