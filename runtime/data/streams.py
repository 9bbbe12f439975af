"""Text from tokens as they come."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Protocol


class TextStream(Protocol):
    """Turns ids into text as they come. The pieces joined are `Tokenizer.decode` of all ids."""

    def write(self, token: int) -> str:
        """The text that this id completes: empty while a character is unfinished."""

    def flush(self) -> str:
        """What was held back, unfinished characters as U+FFFD."""


class ByteStream:
    """Bytes as UTF-8."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, token: int) -> str:
        return self._decoder.decode(bytes([token]))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class TailStream:
    """Decodes a short tail again at each token; says only what later tokens can't change.

    A piece of a character decodes to U+FFFD at the end, and many decoders drop the space before the first
    token: so the text of the tail with the new token is compared with the text of the tail without it.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._tail: list[int] = []
        self._said = 0  # how many of the tail's ids are in the text already given

    def write(self, token: int) -> str:
        self._tail.append(token)
        text = self._decode(self._tail)
        if text.endswith("\ufffd"):
            return ""
        return self._take(text)

    def flush(self) -> str:
        return self._take(self._decode(self._tail))

    def _take(self, text: str) -> str:
        before = self._decode(self._tail[: self._said])
        self._tail = self._tail[self._said :]
        self._said = len(self._tail)
        return text[len(before) :]
