"""An actor as a process of this machine: both ends of its pipe. The process loads neither JAX nor the compiler."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection

from .actor import Actor, Play
from .policy import Weights
from .transitions import Arrays


class Process:
    """A `crew.Player`; it ends when its pipe does, and so with this process."""

    def __init__(self, play: Play, seed: tuple[int, ...], weights: Weights) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=act, args=(theirs, play, seed, weights), daemon=True)
        self._process.start()
        theirs.close()

    def gathered(self) -> tuple[Arrays, list[float]]:
        with _ends():
            found: tuple[Arrays, list[float]] = self._pipe.recv()
            return found

    def answer(self, weights: Weights | None) -> None:
        with _ends():
            self._pipe.send(weights)

    def end(self) -> str:
        self._pipe.close()
        self._process.join()
        return f"exit code {self._process.exitcode}"

    def kill(self) -> None:
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def act(learner: Connection, play: Play, seed: tuple[int, ...], weights: Weights) -> None:
    """The life of an actor's process: it sends what it gathers, and goes on once the learner has answered the chunk
    before. An answer holds new weights, or None; it ends when nobody is there to answer any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the learner decides what it means
    actor = Actor(play, seed)
    actor.load(weights)
    with suppress(EOFError), _ends():
        learner.send(actor.gather())
        while True:
            learner.send(actor.gather())
            if (newer := learner.recv()) is not None:
                actor.load(newer)


@contextmanager
def _ends() -> Iterator[None]:
    """Turns what a broken pipe raises into EOFError."""
    try:
        yield
    except OSError as error:
        raise EOFError from error
