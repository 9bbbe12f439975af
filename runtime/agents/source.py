"""Replay as a source of batches: a run trains on what its own policy has seen."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from planform.compiler.agents import FIELDS

from ..data.arrays import load_arrays
from ..data.source import Batch, Share
from ..errors import UserError
from .actor import CHUNK, Actor, Play, episodes
from .crew import Crew, Hire
from .policy import Weights
from .process import Process
from .replay import Pace, Replay
from .transitions import Arrays

FETCH = 100
"""Steps of the learner after which actors get new weights."""

TOLERANCE = 0.1
"""How far actors or the learner may be ahead, as a part of the draws that the first transitions stand for."""

EVALUATION = 20118
"""Of the episodes that are measured with; no run's own seed changes it."""


class ReplayData:
    """Batches of transitions that actors gather while a run goes on; a DataSource that follows the run.

    fields    names of the observation, action, reward, discount, next observation and, where transitions are drawn by
              priority, of their weight
    actors    how many play; with 0 this process does, a chunk whenever one is due: such a run is repeatable
    hire      where they play: processes of this machine
    ratio     how often a transition is drawn, on average
    first     transitions before the first draw
    exponent  of priorities; 0 draws evenly
    file      where what was seen is kept when a run ends or is stopped. Without it, or after a kill, a run that goes on
              begins with `first` new transitions
    """

    def __init__(
        self,
        play: Play,
        fields: Sequence[str],
        share: Share,
        seed: int,
        *,
        actors: int = 1,
        hire: Hire = Process,
        capacity: int = 1_000_000,
        ratio: float = 32.0,
        first: int = 1000,
        exponent: float = 0.0,
        file: Path | None = None,
    ) -> None:
        self.play, self.share, self.seed = play, share, seed
        self._names = dict(zip(FIELDS, fields))
        self._count, self._hire, self._file = actors, hire, file
        self._replay = Replay(capacity, exponent)
        self._pace = Pace(ratio, first, max(TOLERANCE * ratio * first, CHUNK * ratio + share.local))
        self._changed = threading.Condition()  # of all below
        self._weights: Weights | None = None
        self._drawn: deque[np.ndarray] = deque()
        self._returns: deque[float] = deque(maxlen=10)
        self._actor: Actor | None = None
        self._fault: str | None = None
        self._closed = False
        play.open(0)  # says at once what doesn't fit

    # -- what every source has -----------------------------------------------------------------------------

    def batch(self, step: int) -> Batch:
        """The next batch; `step` chooses its rows among those that are there."""
        n = self.share.local
        with self._changed:
            while not self._pace.may_draw(n):
                self._wait()
            rng = np.random.default_rng((self.seed, self.share.process, step))
            at, rows = self._replay.draw(n, rng)
            if self._replay.exponent:
                self._drawn.append(at)
            self._pace.drawn += n
            self._changed.notify_all()
        return {name: rows[field] for field, name in self._names.items()}

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Batches without end, and actors as long as they are asked for."""
        self._restore()
        seed = (self.seed, self.share.process, start)
        if self._count:
            self._closed = False
            crew = Crew(self._count, self._hire, self.play, seed, self._take, self._newest, self._fail)
            stop = crew.close
        else:
            self._actor = Actor(self.play, seed)
            stop = lambda: None  # noqa: E731
        try:
            for step in range(start, 1 << 62):
                yield self.batch(step)
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            stop()
            if self._file and self._replay.count:
                self._replay.save(self._file)

    def heldout(self, count: int) -> Iterator[Batch]:
        """Nothing: what counts is how well the policy plays."""
        return iter(())

    def describe(self) -> dict[str, Any]:
        told = {"environment": self.play.environment, "n": self.play.n, "gamma": self.play.gamma,
                "repeat": self.play.repeat, "batch": self.share.batch, "seed": self.seed}  # fmt: skip
        return {"kind": "replay", **told, "fingerprint": hashlib.sha256(repr(told).encode()).hexdigest()[:16]}

    # -- what follows a run --------------------------------------------------------------------------------

    def follow(self, step: int, parameters: Callable[[Sequence[str]], Weights]) -> None:
        """After so many steps: the policy is played with what `parameters` gives by name, before long."""
        if self._weights is None or step % FETCH == 0:
            self._weights = parameters(self.play.policy.weights)

    def learned(self, priorities: np.ndarray) -> None:
        """How much there was to learn from each entry of the oldest global batch that this wasn't told of yet."""
        priorities = np.split(priorities, self.share.of)[self.share.process]
        with self._changed:
            self._replay.prioritise(self._drawn.popleft(), priorities)

    def measure(self, count: int) -> dict[str, float]:
        """Mean returns: of so many episodes without noise, always the same ones; of the last that actors played."""
        found = {"episode_return": episodes(self.play, self._newest(), count, EVALUATION)}
        if self._returns:
            found["actor_return"] = list(self._returns)
        return {name: float(np.mean(values)) for name, values in found.items()}

    # -- actors --------------------------------------------------------------------------------------------

    def _newest(self) -> Weights:
        assert self._weights is not None, "a run is followed before its batches are asked for"
        return self._weights

    def _wait(self) -> None:
        if self._fault:
            raise UserError(self._fault)
        if self._count:
            self._changed.wait()
        else:
            assert self._actor is not None, "batches() opens what plays"
            self._actor.load(self._newest())
            self._insert(*self._actor.gather())

    def _insert(self, rows: Arrays, returns: list[float]) -> None:
        if n := len(rows["reward"]):
            self._replay.insert(rows)
            self._pace.inserted += n
        self._returns.extend(returns)

    def _take(self, rows: Arrays, returns: list[float]) -> bool:
        with self._changed:
            while not (self._closed or self._pace.may_insert(len(rows["reward"]))):
                self._changed.wait()
            if not self._closed:
                self._insert(rows, returns)
                self._changed.notify_all()
            return not self._closed

    def _fail(self, why: str) -> None:
        with self._changed:
            self._fault = why
            self._changed.notify_all()

    def _restore(self) -> None:
        if self._file and self._file.is_file() and not self._replay.count:
            rows = load_arrays(self._file)
            self._replay.insert({name: a[-self._replay.capacity :] for name, a in rows.items()})
            self._pace.inserted = min(self._replay.count, self._pace.first)
