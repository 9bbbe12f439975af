"""SentencePiece models (`tokenizer.model`), as Gemma's checkpoints bring them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..errors import UserError
from .files import read_file, write_file
from .streams import TailStream, TextStream

PIECES = "tokenizer.model"


class PieceTokenizer:
    """A tokenizer of the `sentencepiece` library, from a `tokenizer.model`.

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
        self.bos = _known(self._pieces.bos_id())
        self.eos = _known(self._pieces.eos_id())
        self.pad = _known(self._pieces.pad_id())

    def encode(self, text: str | bytes) -> np.ndarray:
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        return np.asarray(self._pieces.encode(text), np.int64)

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


def _known(token: int) -> int | None:
    return token if token >= 0 else None
