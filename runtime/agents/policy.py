"""A graph that acts, without JAX and the compiler: onnxruntime on one thread, its weights inputs, so that new ones cost
nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from planform.backends.onnx.session import load, options

Weights = Mapping[str, np.ndarray]
"""Of a policy, by logical name."""


@dataclass(frozen=True)
class Policy:
    """What a process needs to act.

    model        an ONNX model: the observation and every weight are inputs
    weights      the logical names of these weights, `actor.linear.weight`
    observation  the input's name; shape and dtype are those of one observation
    action       the output's name; actions how many numbers it has
    """

    model: bytes
    weights: tuple[str, ...]
    observation: str
    shape: tuple[int, ...]
    dtype: str
    action: str
    actions: int


class Acting:
    """A policy in this process. `load` gives it weights, by the names that it lists."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._session = load(policy.model, options(threads=1, spin=False))
        self._observation = np.zeros((1, *policy.shape), np.uint8 if policy.dtype == "u8" else np.float32)
        self._action = np.zeros((1, policy.actions), np.float32)
        self._weights: dict[str, np.ndarray] = {}
        # Arrays that stay where they are: a call then hands over nothing.
        self._bound = self._session.io_binding()
        self._bound.bind_cpu_input(policy.observation, self._observation)
        self._bound.bind_output(
            policy.action, "cpu", 0, np.float32, self._action.shape, self._action.__array_interface__["data"][0]
        )

    def load(self, weights: Weights) -> None:
        self._weights = {name: np.array(weights[name], np.float32) for name in self.policy.weights}
        for name, array in self._weights.items():
            self._bound.bind_cpu_input(name, array)

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """The action [actions] for one observation."""
        self._observation[0] = observation
        self._session.run_with_iobinding(self._bound)
        action: np.ndarray = self._action[0].copy()
        return action
