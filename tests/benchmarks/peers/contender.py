"""The face that every tool has here: load a form of the model, take a prompt, give one token after the other."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..sizes import Size


class Contender(ABC):
    """One stream of a model, greedily. A module imports its tool when it is needed: a process holds one tool only."""

    warm: ClassVar[int | None] = 512
    """So much of a prompt at most goes before one that is timed; None: all of it, for who compiles for a length."""

    def __init__(self, size: Size, path: Path, threads: int) -> None:
        """Loads the model, ready to run."""
        self.size, self.path, self.threads = size, path, threads
        self.token = 0

    @abstractmethod
    def start(self, room: int) -> None:
        """Begins a new stream with room for so many entries."""

    @abstractmethod
    def feed(self, tokens: np.ndarray) -> np.ndarray:
        """Takes the next entries, int32[time]; returns the logits [vocab] after the last."""

    def prompt(self, tokens: np.ndarray) -> None:
        """Takes a prompt, and chooses the token after it."""
        self.token = int(self.feed(tokens).argmax())

    def step(self) -> None:
        """Takes the token that was chosen, and chooses the next."""
        self.token = int(self.feed(np.array([self.token], np.int32)).argmax())

    def timed_prompt(self, tokens: np.ndarray) -> float:
        """Seconds of a prompt."""
        begin = time.perf_counter()
        self.prompt(tokens)
        return time.perf_counter() - begin

    def timed_steps(self, count: int) -> list[float]:
        """Seconds of each of so many steps."""
        found = []
        for _ in range(count):
            begin = time.perf_counter()
            self.step()
            found.append(time.perf_counter() - begin)
        return found
