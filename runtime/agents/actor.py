"""Who plays, in whatever process: neither JAX nor the compiler is loaded for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .environment import Environment, within
from .policy import Acting, Policy, Weights
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

    def open(self, seed: int) -> Environment:
        return Environment(self.environment, self.policy.shape, self.policy.actions, seed, self.repeat)


class Actor:
    """Plays one episode after another with the newest weights that it was given."""

    def __init__(self, play: Play, seed: tuple[int, ...]) -> None:
        self._play, self._rng = play, np.random.default_rng(seed)
        self._environment = play.open(int(self._rng.integers(1 << 31)))
        self._acting = Acting(play.policy)
        self._steps = Steps(play.n, play.gamma, CHUNK)
        self._observation: np.ndarray | None = None
        self._return = 0.0

    def load(self, weights: Weights) -> None:
        self._acting.load(weights)

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


def episodes(
    play: Play,
    weights: Weights,
    count: int,
    seed: int = 0,
    see: Callable[[int, Environment], None] | None = None,
) -> list[float]:
    """Returns of whole episodes without noise; `see` is shown the environment after every step, and which episode it
    is in."""
    environment, acting = play.open(seed), Acting(play.policy)
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
