"""SentencePiece models (`tokenizer.model`), as Gemma's checkpoints bring them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from ..errors import UserError
from .files import read_file, write_file
from .special import read_settings
from .streams import TailStream, TextStream

PIECES = "tokenizer.model"


class PieceTokenizer:
    """A tokenizer of the `sentencepiece` library, from a `tokenizer.model`. The names of special tokens are the
    model's, unless `tokenizer_config.json` or `special_tokens_map.json` beside it has others.

    Raises UserError for a file that is missing or isn't one.
    """

    def __init__(self, path: str | Path) -> None:
        import sentencepiece

        file = Path(path) / PIECES if Path(path).is_dir() else Path(path)
        self._content = read_file(file)
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=self._content)
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"{file} isn't a SentencePiece model", help="copy it again") from error
        self.name = file.parent.name if file.name == PIECES else file.stem
        self.fingerprint = hashlib.sha256(self._content).hexdigest()
        self.vocab_size = int(self._pieces.vocab_size())
        self._settings = read_settings(file.parent)
        ids = {"bos_token": self._pieces.bos_id(), "eos_token": self._pieces.eos_id(),
               "pad_token": self._pieces.pad_id(), "unk_token": self._pieces.unk_id()}  # fmt: skip
        own = {role: self._pieces.id_to_piece(i) for role, i in ids.items() if i >= 0}
        self.specials: Mapping[str, str] = {**own, **self._settings.specials}
        self.bos = self._special("bos_token") if self._settings.adds_bos else None
        self.eos = self._special("eos_token")
        self.pad = self._special("pad_token")
        # Pieces that stand for themselves and that the library never finds in a text.
        control = (i for i in range(self.vocab_size) if self._pieces.is_control(i))
        self._control = {self._pieces.id_to_piece(i): i for i in control}
        self._marks = re.compile("(" + "|".join(map(re.escape, sorted(self._control, key=len, reverse=True))) + ")")

    def _special(self, role: str) -> int | None:
        text = self.specials.get(role)
        return None if text is None else self.token(text)

    def encode(self, text: str | bytes) -> np.ndarray:
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        return np.asarray(self._pieces.encode(text), np.int64)

    def encode_marked(self, text: str) -> np.ndarray:
        if not self._control:
            return self.encode(text)
        parts = [part for part in self._marks.split(text) if part]
        ids = [[self._control[part]] if part in self._control else self._pieces.encode(part) for part in parts]
        return np.asarray([i for some in ids for i in some], np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        text: str = self._pieces.decode([int(i) for i in ids])
        return text

    def token(self, text: str) -> int | None:
        """The id of a whole piece such as `<end_of_turn>`, or None."""
        found = int(self._pieces.piece_to_id(text))
        return found if found != self._pieces.unk_id() else None

    def stream(self) -> TextStream:
        return TailStream(self.decode)

    def save(self, folder: Path) -> None:
        write_file(folder / PIECES, self._content)
        self._settings.save(folder)
