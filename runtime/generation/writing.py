"""The loop: a batch of rows that grow by a token at a time, and end each in its own time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count as count_from

import numpy as np

from ..data.streams import TextStream
from ..errors import UserError
from .decoders import Decoder
from .model import Model
from .sampling import Sampling, sample
from .stopping import StopStrings

EOS, STOP, TOKENS = "eos", "stop", "tokens"
"""Why a row ended: an id that ends texts, a stop string, or that it has all the tokens that were asked for."""


class Rows:
    """Rows that are written at once.

    decoder   what computes; its streams begin anew with every `Rows`
    prompts   integer [time] each, of any lengths
    tokens    how many to write, at most; None: until every row ends by itself or is told to
    sampling  how they are chosen
    ends      ids that end a row and don't count as its tokens
    vocab     ids from here on are never chosen; all may be, without one

    Iterating gives (row, token) as tokens come, and (row, None) once for a row that ends by itself; `ended` says why.
    A row that is told to `end` takes no part from the next step on.
    Raises: UserError for a prompt that is empty, too long, or another tokenizer's, and for a text without end of a
    model that keeps all that it has read.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompts: Sequence[np.ndarray],
        tokens: int | None,
        sampling: Sampling,
        ends: Collection[int] = (),
        vocab: int | None = None,
    ) -> None:
        for i, ids in enumerate(prompts):
            which = "the prompt" if len(prompts) == 1 else f"prompt {i + 1}"
            if not len(ids):
                raise UserError(f"{which} has no token", help="give some text to go on from")
            if ids.max() >= decoder.vocab:
                raise UserError(
                    f"{which} has the token {ids.max()}, and the model knows {decoder.vocab}",
                    help="its tokenizer belongs to another model",
                )
        self._decoder, self._prompts, self._tokens = decoder, prompts, tokens
        self._sampling, self._ends = sampling, frozenset(ends)
        self._vocab = min(decoder.vocab, vocab or decoder.vocab)
        self.ended: list[str | None] = [None] * len(prompts)
        if tokens is None and not decoder.endless:
            raise UserError(
                "this model keeps all that it has read, so a text of its must end somewhere",
                help="say how many --tokens; only models whose state doesn't grow write without end",
            )
        decoder.start(len(prompts), max(len(ids) for ids in prompts) + (tokens or 0))

    def end(self, row: int, why: str = STOP) -> None:
        self.ended[row] = self.ended[row] or why

    def __iter__(self) -> Iterator[tuple[int, int | None]]:
        batch = len(self._prompts)
        count = np.array([len(ids) for ids in self._prompts])
        feed = np.zeros((batch, count.max()), np.int64)
        seen = np.zeros((batch, self._vocab), bool) if self._sampling.repetition_penalty != 1 else None
        for row, ids in enumerate(self._prompts):
            feed[row, : len(ids)] = ids
            if seen is not None:
                seen[row, ids[ids < self._vocab]] = True
        for step in count_from(0) if self._tokens is None else range(self._tokens):
            logits = self._decoder.feed(feed, count)[:, : self._vocab]
            chosen = sample(logits, self._sampling, step, seen)
            for row in range(batch):
                token = int(chosen[row])
                if self.ended[row]:
                    continue
                if token in self._ends:
                    self.end(row, EOS)
                    yield row, None
                    continue
                if seen is not None:
                    seen[row, token] = True
                yield row, token
                if step + 1 == self._tokens and not self.ended[row]:
                    self.end(row, TOKENS)
                    yield row, None
            if all(self.ended):
                return
            feed, count = chosen[:, None], np.array([int(not why) for why in self.ended])


@dataclass(frozen=True)
class Piece:
    """What a row says next: `text` may be empty while a character or a stop string is unfinished. `token` is None
    for what was held back to the end; `ended` says why the row ended, in its last piece."""

    row: int
    token: int | None
    text: str
    ended: str | None = None


def write(
    model: Model,
    prompts: Sequence[np.ndarray],
    tokens: int | None,
    sampling: Sampling,
    stops: Sequence[str] = (),
    ends: Collection[int] | None = None,
) -> Iterator[Piece]:
    """The texts that follow some prompts, piece by piece as they come; every row's last piece has `ended`.

    tokens  how many to write, at most; None: without end, see `Rows`
    stops  strings that end a row; they are never said
    ends   ids that end a row; those of the model, unless given
    Raises: UserError as `Rows` and `StopStrings` do, before anything is written.
    """
    held = [StopStrings(stops) for _ in prompts]
    rows = Rows(model.decoder, prompts, tokens, sampling, model.ends if ends is None else ends,
                model.tokenizer.vocab_size)  # fmt: skip
    streams = [model.tokenizer.stream() for _ in prompts]
    for stream, ids in zip(streams, prompts, strict=True):
        for i in ids:
            stream.write(int(i))  # so that what follows decodes as it would behind the prompt
        stream.flush()
    return _pieces(rows, streams, held)


def _pieces(rows: Rows, streams: Sequence[TextStream], held: Sequence[StopStrings]) -> Iterator[Piece]:
    for row, token in rows:
        if token is None:
            text = held[row].write(streams[row].flush()) + held[row].flush()
            yield Piece(row, None, text, STOP if held[row].found else rows.ended[row])
            continue
        text = held[row].write(streams[row].write(token))
        if held[row].found:
            rows.end(row, STOP)
        yield Piece(row, token, text, rows.ended[row])
