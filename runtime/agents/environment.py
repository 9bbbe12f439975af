"""Environments of the control suite as arrays: flat observations or stacked frames, actions within [-1, 1]."""

from __future__ import annotations

import os
import sys
from collections import deque
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError

COLOURS = 3
INSTALL = "egl needs libegl1 (a GPU's or Mesa's), osmesa needs libosmesa6; it chooses between them where it isn't set"
RENDERER = "MUJOCO_GL"
RENDERERS = ("egl", "osmesa", "disabled")
"""Values of it that need no display, the best first. All environments of a process have one."""


class Step(NamedTuple):
    """What an action led to. discount is 0 where the episode ended for good, not where its time was up."""

    observation: np.ndarray
    reward: float
    discount: float
    last: bool


class Environment:
    """One environment, an episode at a time.

    name    `cartpole:balance`, a domain and a task of the control suite
    shape   of an observation: [size] for everything that the task observes, flat, float32; or [height, width,
            3 * frames] for its newest frames, the oldest first, uint8
    seed    of the episodes
    repeat  how often an action is taken before the next one is chosen; rewards add up
    Raises: UserError where there is no such environment, or it observes or takes something else.
    """

    def __init__(self, name: str, shape: tuple[int, ...], actions: int, seed: int = 0, repeat: int = 1) -> None:
        self.name, self.repeat = name, repeat
        self._env = _load(name, seed)
        spec = self._env.action_spec()
        self._low, self._half = spec.minimum, (spec.maximum - spec.minimum) / 2
        self._frames: deque[np.ndarray] | None = None
        if len(shape) == 3:
            if shape[-1] % COLOURS:
                raise UserError(f"frames of 3 colours can't make {shape[-1]} channels", help="3, or 9 for three frames")
            self._size = shape[:2]
            self._frames = deque(maxlen=shape[-1] // COLOURS)
        found = sum(int(np.prod(s.shape)) for s in self._env.observation_spec().values())
        mine = (self._low.size,) if self._frames is not None else (self._low.size, found)
        wanted = (actions,) if self._frames is not None else (actions, *shape)
        if mine != wanted:
            raise UserError(
                f"{name} has {found} observations and {self._low.size} actions, the model "
                + (f"{shape[0]} and {actions}" if self._frames is None else f"{actions}"),
                help="choose the size of the spec that fits, or set its dims",
            )

    @property
    def seconds(self) -> float:
        """How long a step is."""
        return float(self._env.control_timestep() * self.repeat)

    def reset(self) -> np.ndarray:
        """Begins an episode; its first observation."""
        step = self._env.reset()
        if self._frames is not None:
            self._frames.clear()
        return self._observed(step)

    def step(self, action: np.ndarray) -> Step:
        """Takes an action [actions], each entry within [-1, 1] of its range."""
        taken = self._low + (within(action) + 1.0) * self._half
        reward, discount = 0.0, 1.0
        for _ in range(self.repeat):
            step = self._env.step(taken)
            reward += discount * step.reward
            discount *= step.discount
            if step.last():
                break
        return Step(self._observed(step), reward, discount, step.last())

    def picture(self, height: int, width: int) -> np.ndarray:
        """What the first camera sees: uint8 [height, width, 3]. Raises: UserError where nothing can render."""
        try:
            return np.asarray(self._env.physics.render(height, width, camera_id=0))
        except Exception as error:  # each OpenGL platform raises its own
            raise UserError(
                f"this machine can't render with {RENDERER}={os.environ.get(RENDERER, '')}: {error}", help=INSTALL
            ) from error

    def _observed(self, step: Any) -> np.ndarray:
        if self._frames is None:
            return np.concatenate(
                [np.ravel(v) for v in step.observation.values()], dtype=np.float32, casting="same_kind"
            )
        self._frames.append(self.picture(*self._size))
        missing = self._frames.maxlen - len(self._frames)  # type: ignore[operator]
        return np.concatenate([*[self._frames[0]] * missing, *self._frames], axis=-1)


def within(action: np.ndarray) -> np.ndarray:
    """Between -1 and 1. (np.clip takes three times as long for a few numbers.)"""
    found: np.ndarray = np.minimum(np.maximum(action, -1.0), 1.0)
    return found


def _load(name: str, seed: int) -> Any:
    suite = _suite()
    known = [":".join(pair) for pair in suite.ALL_TASKS]
    if name not in known:
        from planform.spec import did_you_mean

        help = did_you_mean(name, known) or "cartpole:balance, for instance"
        raise UserError(f"there is no environment {name}", help=help)
    return suite.load(*name.split(":"), task_kwargs={"random": seed})


def _suite() -> Any:
    """The control suite, with the renderer that is chosen, or where none is and there is no display, the first that
    loads here; processes that this one starts have the same. Raises: UserError."""
    if find_spec("dm_control") is None:
        raise UserError("environments need dm_control, which isn't installed", help='pip install "planform[control]"')
    chosen = RENDERER in os.environ or "DISPLAY" in os.environ
    for renderer in (None,) if chosen or "dm_control.suite" in sys.modules else RENDERERS:
        if renderer:
            os.environ[RENDERER] = renderer
        try:
            return import_module("dm_control.suite")
        except Exception as error:  # each OpenGL platform raises its own
            if renderer is None:
                raise UserError(f"the control suite doesn't load with {RENDERER}={os.environ.get(RENDERER, '')}: "
                                f"{error}", help=INSTALL) from error  # fmt: skip
            for module in [m for m in sys.modules if m.partition(".")[0] in ("dm_control", "OpenGL")]:
                del sys.modules[module]
            os.environ.pop("PYOPENGL_PLATFORM", None)  # which dm_control sets
    raise AssertionError("without a renderer it always loads")
