"""From steps to transitions of n steps."""

from __future__ import annotations

import numpy as np

Arrays = dict[str, np.ndarray]


class Steps:
    """Steps of one episode in the order in which they happen, until they are transitions.

    n      rewards in a transition
    gamma  discount of a step
    room   steps between two calls of `transitions`, at most
    """

    def __init__(self, n: int, gamma: float, room: int) -> None:
        self.n, self.gamma = n, gamma
        self._room = room + n
        self._count = 0

    def begin(self, observation: np.ndarray) -> None:
        """The first observation of an episode."""
        if not hasattr(self, "_observations"):
            self._observations = np.empty((self._room + 1, *observation.shape), observation.dtype)
        self._observations[0] = observation
        self._count = 0

    def add(self, action: np.ndarray, reward: float, discount: float, observation: np.ndarray) -> None:
        """One step: an action, and what came of it."""
        if not hasattr(self, "_actions"):
            self._actions = np.empty((self._room, *action.shape), np.float32)
            self._rewards, self._discounts = np.empty((2, self._room))
        i = self._count
        self._actions[i], self._rewards[i], self._discounts[i] = action, reward, discount
        self._observations[i + 1] = observation
        self._count = i + 1

    def transitions(self, ended: bool) -> Arrays:
        """Those that are complete, each once: from a step to n steps later, or to the end of an episode that has ended.
        The others wait."""
        count = self._count
        ready = count if ended else max(count - self.n + 1, 0)
        found = n_step(self._observations[: count + 1], self._actions[:count], self._rewards[:count],
                       self._discounts[:count], self.n, self.gamma, ready)  # fmt: skip
        rest = count - ready
        for array in (self._actions, self._rewards, self._discounts):
            array[:rest] = array[ready:count].copy()
        self._observations[: rest + 1] = self._observations[ready : count + 1].copy()
        self._count = rest
        return found


def n_step(
    observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    discounts: np.ndarray,
    n: int,
    gamma: float,
    ready: int,
) -> Arrays:
    """Transitions from each of the first `ready` steps of T: observations [T + 1, ..], actions [T, ..], rewards and
    discounts [T].

    reward = sum over i < n of gamma^i * (product of the discounts before step i) * reward_i, and discount = gamma^n *
    the product of all n discounts: what the value of next_observation counts for. Windows that pass the last step end
    there, with as many factors as they have steps.
    """
    start = np.arange(ready)
    reward, discount = np.zeros(ready), np.ones(ready)
    for i in range(n):
        at = start + i
        inside = at < len(rewards)
        at = np.minimum(at, len(rewards) - 1)
        reward += np.where(inside, discount * rewards[at], 0.0)
        discount = np.where(inside, discount * gamma * discounts[at], discount)
    after = np.minimum(start + n, len(rewards))
    return {
        "observation": observations[:ready].copy(),
        "action": actions[:ready].copy(),
        "reward": reward.astype(np.float32),
        "discount": discount.astype(np.float32),
        "next_observation": observations[after],
    }
