"""Actors that are answered by a thread each, wherever they play. The learner never waits for one of them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Protocol

from .actor import Play
from .policy import Weights
from .transitions import Arrays

PATIENCE = 10.0
"""Seconds that an actor has to end."""


class Player(Protocol):
    """An actor somewhere, which gathers the next chunk while the last is on its way."""

    def gathered(self) -> tuple[Arrays, list[float]]:
        """What `Actor.gather` gives, in order; waits for it. Raises: EOFError once it has ended."""

    def answer(self, weights: Weights | None) -> None:
        """Lets it go on, with other weights or those that it has. Raises: EOFError once it has ended."""

    def end(self) -> str:
        """Lets it end; waits until it has, and says how: "exit code 1"."""

    def kill(self) -> None:
        """Ends it if it is still there."""


Hire = Callable[[Play, tuple[int, ...], Weights], Player]
"""Where actors play: starts one, with a seed of its own and weights to begin with."""


class Crew:
    """Keeps `count` actors playing, from now on.

    hire    starts one
    take    is given what an actor gathered and the returns of episodes that ended; it waits until more is wanted, False
            when nothing is any more
    newest  the weights to play with; other ones than before go out with the next answer
    failed  is told, once, why an actor can't be kept alive

    An actor that ends by itself is started again, unless it never gathered anything.
    """

    def __init__(
        self,
        count: int,
        hire: Hire,
        play: Play,
        seed: tuple[int, ...],
        take: Callable[[Arrays, list[float]], bool],
        newest: Callable[[], Weights],
        failed: Callable[[str], None],
    ) -> None:
        self._hire, self._play, self._seed = hire, play, seed
        self._take, self._newest, self._failed = take, newest, failed
        self._closing = False
        self._players: dict[int, Player] = {}
        self._threads = [threading.Thread(target=self._keep, args=(i,), daemon=True) for i in range(count)]
        for t in self._threads:
            t.start()

    def close(self) -> None:
        """Ends all actors, once nothing is taken any more, and waits for them."""
        self._closing = True
        for t in self._threads:
            t.join(timeout=PATIENCE)
        for player in self._players.values():
            player.kill()  # if it hangs

    def _keep(self, index: int) -> None:
        """Keeps one actor alive until the crew is closed."""
        for life in range(sys.maxsize):
            known = self._newest()
            player = self._players[index] = self._hire(self._play, (*self._seed, index, life), known)
            chunks = self._answer(player, known)
            how = player.end()
            if self._closing:
                return
            if not chunks:
                self._failed(f"actor {index} ended with {how} before it had played")
                return
            print(f"actor {index} ended with {how}; it is started again", file=sys.stderr)

    def _answer(self, player: Player, known: Weights) -> int:
        """Answers an actor until it or the crew ends; how many chunks it gathered."""
        chunks = 0
        try:
            while True:
                rows, returns = player.gathered()
                chunks += 1
                if not self._take(rows, returns):
                    return chunks
                newest = self._newest()
                player.answer(newest if newest is not known else None)
                known = newest
        except EOFError:  # it ended
            return chunks
