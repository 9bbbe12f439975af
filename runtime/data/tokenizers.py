"""Text to token ids and back: raw bytes, a Hugging Face `tokenizer.json`, or a SentencePiece model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from ..errors import UserError
from .files import read_file, read_mapping, write_file
from .special import read_settings
from .streams import ByteStream, TailStream, TextStream

FILE = "tokenizer.json"


class Tokenizer(Protocol):
    """name         what to call it in a message
    fingerprint  equal for tokenizers that encode everything alike
    vocab_size   1 + the largest id
    bos, eos, pad  ids, or None where the vocabulary has none; bos also where texts are not to begin with it
    specials     how special tokens are written, by role (`bos_token`), as chat templates name them
    """

    name: str
    fingerprint: str
    vocab_size: int
    bos: int | None
    eos: int | None
    pad: int | None
    specials: Mapping[str, str]

    def encode(self, text: str | bytes) -> np.ndarray:
        """Ids, integer [tokens], without bos and eos. Bytes that are no UTF-8 never fail."""

    def encode_marked(self, text: str) -> np.ndarray:
        """The same, but special tokens that are written in the text (`<bos>`) are their ids."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text, special tokens left out; bytes that are no UTF-8 become U+FFFD."""

    def token(self, text: str) -> int | None:
        """The id of a token that is written as `text` and means itself, `<end_of_turn>` for instance; or None."""

    def stream(self) -> TextStream:
        """A fresh incremental decoder."""

    def save(self, folder: Path) -> None:
        """Writes its file (and its settings, if it has any) into the folder.

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
    specials: Mapping[str, str] = MappingProxyType({})

    def encode(self, text: str | bytes) -> np.ndarray:
        return np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8)

    def encode_marked(self, text: str) -> np.ndarray:
        return self.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(int(i) for i in ids).decode(errors="replace")

    def token(self, text: str) -> int | None:
        return None

    def stream(self) -> TextStream:
        return ByteStream()

    def save(self, folder: Path) -> None:
        write_file(folder / FILE, json.dumps(_byte_level(), ensure_ascii=False, indent=1).encode())


class JsonTokenizer:
    """A tokenizer of Hugging Face's `tokenizers` library.

    path      a `tokenizer.json`, or a folder with one; `tokenizer_config.json` and `special_tokens_map.json` beside
              it name bos, eos and pad

    Raises UserError for a file that is missing or isn't one.
    """

    def __init__(self, path: str | Path) -> None:
        import tokenizers

        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        self._content = read_file(file)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(self._content.decode())
        except Exception as error:  # the library raises plain Exception
            raise UserError(
                f"{file} isn't a tokenizer: {error}", help="it should be a Hugging Face tokenizer.json"
            ) from error
        self._settings = read_settings(file.parent)
        self.specials: Mapping[str, str] = self._settings.specials
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.name = file.parent.name if file.name == FILE else file.stem
        self.fingerprint = hashlib.sha256(self._content).hexdigest()
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.bos = self._special("bos_token") if self._settings.adds_bos else None
        self.eos = self._special("eos_token")
        self.pad = self._special("pad_token")

    def _special(self, role: str) -> int | None:
        text = self.specials.get(role)
        return None if text is None else self.token(text)

    def encode(self, text: str | bytes) -> np.ndarray:
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int64)

    def encode_marked(self, text: str) -> np.ndarray:
        return self.encode(text)  # the library finds them in any text

    def decode(self, ids: Iterable[int]) -> str:
        text: str = self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)
        return text

    def token(self, text: str) -> int | None:
        found: int | None = self._tokenizer.token_to_id(text)
        return found

    def stream(self) -> TextStream:
        return TailStream(self.decode)

    def save(self, folder: Path) -> None:
        write_file(folder / FILE, self._content)
        self._settings.save(folder)


def load_tokenizer(spec: str | Path | None = None) -> Tokenizer:
    """The tokenizer that a name or path means: "bytes" or None, a `tokenizer.json`, a `tokenizer.model`, or a folder
    that holds one of them (the first, if both).

    Raises UserError when there is none at that path.
    """
    from .pieces import PIECES, PieceTokenizer

    if spec is None or str(spec) == "bytes":
        return ByteTokenizer()
    path = Path(spec)
    file = path
    if path.is_dir():
        file = next((path / name for name in (FILE, PIECES) if (path / name).is_file()), path / FILE)
    if not file.is_file():
        raise UserError(
            f"there is no tokenizer at {path}",
            help=f'give "bytes", a Hugging Face {FILE}, a SentencePiece {PIECES}, or a folder that holds one',
        )
    if file.suffix == ".model":
        return PieceTokenizer(file)
    if read_mapping(file) == _byte_level():
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
