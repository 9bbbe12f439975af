"""Who plays: an actor in this process, or in one of its own that the learner answers.

The process of an actor loads neither JAX nor the compiler.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from .environment import Environment, within
from .policy import Acting, Policy
from .transitions import Arrays, Steps

CHUNK = 64
"""Steps that an actor takes between two words with the learner."""


@dataclass(frozen=True)
class Play:
    """How actors play.

    n, gamma  of the transitions that they make
    noise     standard deviation of what is added to actions, which go from -1 to 1
    repeat    how often an action is taken
    """

    environment: str
    policy: Policy
    n: int = 5
    gamma: float = 0.99
    noise: float = 0.3
    repeat: int = 1

    def open(self, seed: int, rendered: bool = False) -> Environment:
        p = self.policy
        return Environment(self.environment, p.shape, p.actions, seed, self.repeat, rendered)


class Actor:
    """Plays one episode after another with the newest weights that it was given."""

    def __init__(self, play: Play, seed: tuple[int, ...]) -> None:
        self._play, self._rng = play, np.random.default_rng(seed)
        self._environment = play.open(int(self._rng.integers(1 << 31)))
        self._acting = Acting(play.policy)
        self.load = self._acting.load
        self._steps = Steps(play.n, play.gamma, CHUNK)
        self._observation: np.ndarray | None = None
        self._return = 0.0

    def gather(self) -> tuple[Arrays, list[float]]:
        """CHUNK steps, or fewer where an episode ends: transitions that are complete by then, returns of episodes that
        ended."""
        if self._observation is None:
            self._observation, self._return = self._environment.reset(), 0.0
            self._steps.begin(self._observation)
        noise = self._play.noise * self._rng.standard_normal((CHUNK, self._play.policy.actions), np.float32)
        for extra in noise:
            action = within(self._acting(self._observation) + extra)
            self._observation, reward, discount, last = self._environment.step(action)
            self._steps.add(action, reward, discount, self._observation)
            self._return += reward
            if last:
                self._observation = None
                return self._steps.transitions(ended=True), [self._return]
        return self._steps.transitions(ended=False), []


def act(learner: Connection, play: Play, seed: tuple[int, ...]) -> None:
    """The life of an actor's process: it sends what it gathers, and goes on once the learner has answered the chunk
    before. An answer holds new weights, or None; it ends when nobody is there to answer any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the learner decides what it means
    try:
        actor = Actor(play, seed)
        actor.load(learner.recv())
        learner.send(actor.gather())
        while True:
            learner.send(actor.gather())
            weights: Mapping[str, Any] | None = learner.recv()
            if weights is not None:
                actor.load(weights)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass


def episodes(
    play: Play,
    weights: Mapping[str, np.ndarray],
    count: int,
    seed: int = 0,
    see: Callable[[int, Environment], None] | None = None,
) -> list[float]:
    """Returns of whole episodes without noise; `see` is shown the environment after every step, and which episode it
    is in."""
    environment, acting = play.open(seed, rendered=see is not None), Acting(play.policy)
    acting.load(weights)
    found = []
    for i in range(count):
        observation, total, last = environment.reset(), 0.0, False
        while not last:
            if see:
                see(i, environment)
            observation, reward, _, last = environment.step(acting(observation))
            total += float(reward)
        found.append(total)
    return found
