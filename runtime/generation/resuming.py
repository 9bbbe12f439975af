"""A conversation is read once: its stream goes on where the last answer ended."""

from __future__ import annotations

import numpy as np

from .decoders import Decoder


class Resuming:
    """A decoder of one stream at a time that keeps the stream. Where the next prompt begins with all that it took, only
    the rest is fed; where it doesn't (an answer may be cut into other tokens when it is read again), it begins anew:
    rings have forgotten what would be needed to go back.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.vocab, self.engine, self.longest = decoder.vocab, decoder.engine, decoder.longest
        self.endless = decoder.endless
        self._held = np.zeros(0, np.int64)
        self._room = 0
        self._begins = False

    def start(self, batch: int, capacity: int) -> None:
        """As of any decoder, with batch 1. There is room for as much again, so that a stream lasts a few turns."""
        if batch != 1:
            raise ValueError(f"a conversation is one stream, not {batch}")
        self._begins = True
        if not len(self._held) or (capacity > self._room and not self.endless):
            self._begin(max(capacity, min(2 * capacity, self.longest or 2 * capacity)))

    def feed(self, tokens: np.ndarray, count: np.ndarray) -> np.ndarray:
        ids = tokens[0, : count[0]]
        if self._begins:
            known = len(self._held)
            if known < len(ids) and np.array_equal(ids[:known], self._held):
                ids = ids[known:]
            else:
                self._begin(self._room)
        # Whoever interrupts the decoder leaves a stream that nobody knows: nothing is held until it is done.
        held, self._held = self._held, np.zeros(0, np.int64)
        logits = self._decoder.feed(ids[None], np.array([len(ids)]))
        self._held, self._begins = np.concatenate([held, ids]), False
        return logits

    def _begin(self, room: int) -> None:
        self._decoder.start(1, room)
        self._room, self._held = room, np.zeros(0, np.int64)
