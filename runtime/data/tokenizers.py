"""Text to token ids and back: raw bytes, or a Hugging Face `tokenizer.json`."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import UserError

FILE = "tokenizer.json"
SETTINGS = "tokenizer_config.json"


class TextStream(Protocol):
    """Turns ids into text as they come. The pieces joined are `Tokenizer.decode` of all ids."""

    def write(self, token: int) -> str:
        """The text that this id completes: empty while a character is unfinished."""

    def flush(self) -> str:
        """What was held back, unfinished characters as U+FFFD."""


class Tokenizer(Protocol):
    """name         what to call it in a message
    fingerprint  equal for tokenizers that encode everything alike
    vocab_size   1 + the largest id
    bos, eos, pad  ids, or None where the vocabulary has none
    """

    name: str
    fingerprint: str
    vocab_size: int
    bos: int | None
    eos: int | None
    pad: int | None

    def encode(self, text: str | bytes) -> np.ndarray:
        """Ids, integer [tokens], without bos and eos. Bytes that are no UTF-8 never fail."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text, special tokens left out; bytes that are no UTF-8 become U+FFFD."""

    def stream(self) -> TextStream:
        """A fresh incremental decoder."""

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json` (and its settings, if it has any) into the folder.

        `load_tokenizer(folder)` gives an equal tokenizer, and any Hugging Face library reads it too.
        """


class ByteTokenizer:
    """Every byte is a token, id = value: 256 ids, nothing special, nothing lost."""

    name: str = "bytes"
    fingerprint: str = "bytes"
    vocab_size: int = 256
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None

    def encode(self, text: str | bytes) -> np.ndarray:
        return np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8)

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(int(i) for i in ids).decode(errors="replace")

    def stream(self) -> TextStream:
        return _ByteStream()

    def save(self, folder: Path) -> None:
        _write(folder / FILE, json.dumps(_byte_level(), ensure_ascii=False, indent=1).encode())


class _ByteStream:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, token: int) -> str:
        return self._decoder.decode(bytes([token]))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class JsonTokenizer:
    """A tokenizer of Hugging Face's `tokenizers` library.

    path      a `tokenizer.json`, or a folder with one; `tokenizer_config.json` beside it names bos, eos and
              pad

    Raises UserError for a file that is missing or isn't one.
    """

    def __init__(self, path: str | Path) -> None:
        import tokenizers

        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        self._content = _read(file)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(self._content.decode())
        except Exception as error:  # the library raises plain Exception
            raise UserError(
                f"{file} isn't a tokenizer: {error}", help="it should be a Hugging Face tokenizer.json"
            ) from error
        settings = file.with_name(SETTINGS)
        self._settings = _parse(settings) if settings.is_file() else {}
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.name = file.parent.name if file.name == FILE else file.stem
        self.fingerprint = hashlib.sha256(self._content).hexdigest()
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.bos = self._special("bos_token")
        self.eos = self._special("eos_token")
        self.pad = self._special("pad_token")

    def _special(self, key: str) -> int | None:
        token = self._settings.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        return self._tokenizer.token_to_id(text) if isinstance(text, str) else None

    def encode(self, text: str | bytes) -> np.ndarray:
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        text: str = self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)
        return text

    def stream(self) -> TextStream:
        return _JsonStream(self)

    def save(self, folder: Path) -> None:
        _write(folder / FILE, self._content)
        if self._settings:
            _write(folder / SETTINGS, json.dumps(self._settings, indent=1).encode())


class _JsonStream:
    """Decodes a short tail again at each token; says only what later tokens can't change.

    A piece of a character decodes to U+FFFD at the end, and many decoders drop the space before the first
    token: so the text of the tail with the new token is compared with the text of the tail without it.
    """

    def __init__(self, tokenizer: JsonTokenizer) -> None:
        self._decode = tokenizer.decode
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


def load_tokenizer(spec: str | Path | None = None) -> Tokenizer:
    """The tokenizer that a name or path means: "bytes" or None, a `tokenizer.json`, or a folder that holds
    one.

    Raises UserError when there is none at that path.
    """
    if spec is None or str(spec) == "bytes":
        return ByteTokenizer()
    path = Path(spec)
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"there is no tokenizer at {path}",
            help=f'give "bytes", a Hugging Face {FILE}, or a folder that holds one',
        )
    if _parse(file) == _byte_level():
        return ByteTokenizer()
    return JsonTokenizer(path)


@cache
def _byte_level() -> dict[str, Any]:
    """The byte tokenizer as a `tokenizer.json`: byte-level BPE without merges, its characters in byte
    order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # these stand for themselves,
    others = [b for b in range(256) if b not in printable]  # the others for the characters from 256 on
    characters = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {characters[b]: b for b in range(256)},
            "merges": [],
        },
    }


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"can't read {file}: {error.strerror}") from error


def _parse(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read(file))
    except ValueError as error:
        raise UserError(f"{file} isn't JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} isn't a JSON mapping")
    return value


def _write(file: Path, content: bytes) -> None:
    beside = file.with_name(file.name + ".part")
    beside.write_bytes(content)
    beside.replace(file)
