"""The face that every tool has here: load a form of the model, take a prompt, give one token after the other."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..sizes import Size


@dataclass
class Timed:
    """Seconds of a prompt and of every token after it; the tokens."""

    prefill: float
    steps: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


class Contender(ABC):
    """One stream of a model, greedily. A module imports its tool when it is needed: a process holds one tool only."""

    warm: ClassVar[int | None] = 512
    """So much of a prompt at most goes before one that is timed; None: all of it, for who compiles for a length."""

    def __init__(self, size: Size, path: Path, threads: int) -> None:
        """Loads the model, ready to run."""
        self.size, self.path, self.threads = size, path, threads

    @abstractmethod
    def start(self, room: int) -> None:
        """Begins a new stream with room for so many entries."""

    @abstractmethod
    def feed(self, tokens: np.ndarray) -> np.ndarray:
        """Takes the next entries, int32[time]; returns the logits [vocab] after the last."""

    def greedy(self, prompt: np.ndarray, new: int) -> Timed:
        """Times a prompt and `new` steps after it."""
        begin = time.perf_counter()
        token = int(self.feed(prompt).argmax())
        found = Timed(time.perf_counter() - begin, tokens=[token])
        for _ in range(new):
            begin = time.perf_counter()
            token = int(self.feed(np.array([token], np.int32)).argmax())
            found.steps.append(time.perf_counter() - begin)
            found.tokens.append(token)
        return found
