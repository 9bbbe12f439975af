"""Actors in processes of their own, answered by a thread each. The learner never waits for one of them."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from .actor import Play, act
from .transitions import Arrays

Weights = Mapping[str, np.ndarray]

PATIENCE = 10.0
"""Seconds that an actor has to end."""


class Crew:
    """Starts `count` actors at once.

    take    is given what an actor gathered and the returns of episodes that ended; it waits until more is wanted, False
            when nothing is any more
    newest  the weights to play with; other ones than before go out with the next answer
    failed  is told, once, why an actor can't be kept alive

    An actor that ends by itself is started again, unless it never gathered anything.
    """

    def __init__(
        self,
        count: int,
        play: Play,
        seed: tuple[int, ...],
        take: Callable[[Arrays, list[float]], bool],
        newest: Callable[[], Weights],
        failed: Callable[[str], None],
    ) -> None:
        self._play, self._seed = play, seed
        self._take, self._newest, self._failed = take, newest, failed
        self._closing = False
        self._processes: dict[int, Any] = {}
        self._threads = [threading.Thread(target=self._keep, args=(i,), daemon=True) for i in range(count)]
        for t in self._threads:
            t.start()

    def close(self) -> None:
        """Ends all actors, once nothing is taken any more, and waits for them."""
        self._closing = True
        for t in self._threads:
            t.join(timeout=PATIENCE)
        for process in self._processes.values():
            if process.is_alive():  # it hangs
                process.kill()
                process.join()

    def _keep(self, index: int) -> None:
        """Keeps one actor alive until the crew is closed."""
        context = multiprocessing.get_context("spawn")
        for life in range(sys.maxsize):
            mine, theirs = context.Pipe()
            process = context.Process(target=act, args=(theirs, self._play, (*self._seed, index, life)), daemon=True)
            process.start()
            self._processes[index] = process
            theirs.close()
            with mine:
                chunks = self._answer(mine)
            process.join()
            if self._closing:
                return
            if not chunks:
                self._failed(f"actor {index} ended with exit code {process.exitcode} before it had played")
                return
            print(f"actor {index} ended with exit code {process.exitcode}; it is started again", file=sys.stderr)

    def _answer(self, actor: Connection) -> int:
        """Answers an actor until it or the crew ends; how many chunks it gathered."""
        chunks = 0
        try:
            actor.send(known := self._newest())
            while True:
                rows, returns = actor.recv()
                chunks += 1
                if not self._take(rows, returns):
                    return chunks
                newest = self._newest()
                actor.send(newest if newest is not known else None)
                known = newest
        except (EOFError, OSError):  # it ended
            return chunks
