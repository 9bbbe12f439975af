"""Actors on a Ray cluster, for environments that need more than one machine. Ray is an extra; each machine of the
cluster needs planform and the control suite.
"""

from __future__ import annotations

import threading
from collections import deque
from queue import Queue
from typing import Any

from ..errors import UserError
from .actor import Actor, Play
from .crew import Hire
from .policy import Weights
from .transitions import Arrays

PATIENCE = 600.0
"""Seconds that a chunk may take, a core that is free or a new machine of the cluster included."""


def on_ray(address: str) -> Hire:
    """Connects to a cluster and hires there: `HOST:PORT`, `auto` for the one that runs on this machine, `local` for a
    new one that ends with this process. Raises: UserError."""
    try:
        import ray
    except ImportError as error:
        raise UserError("actors on a cluster need Ray, which isn't installed",
                        help='pip install "planform[ray]"') from error  # fmt: skip
    fault: Queue[Exception | None] = Queue()

    def connect() -> None:
        try:
            ray.init(address, ignore_reinit_error=True, logging_level="error", log_to_driver=False)
        except Exception as error:  # each kind of address raises its own
            fault.put(error)
        else:
            fault.put(None)
            threading.Event().wait()

    # In the main thread Ray would take SIGTERM for itself; what it starts lives as long as the thread that did.
    threading.Thread(target=connect, daemon=True).start()
    if problem := fault.get():
        raise UserError(f"no Ray cluster at {address}: {_last_line(problem)}",
                        help="`ray start --head` begins one; --ray local, one of its own") from problem  # fmt: skip
    return Hired


class Hired:
    """A `crew.Player`: a Ray actor, which needs one core."""

    def __init__(self, play: Play, seed: tuple[int, ...], weights: Weights) -> None:
        import ray

        self._ray = ray
        self._actor = ray.remote(num_cpus=1)(Actor).remote(play, seed)
        self._how = "the run"
        self._asked: deque[Any] = deque()
        self.answer(weights)
        self.answer(None)

    def gathered(self) -> tuple[Arrays, list[float]]:
        try:
            found: tuple[Arrays, list[float]] = self._ray.get(self._asked.popleft(), timeout=PATIENCE)
            return found
        except self._ray.exceptions.GetTimeoutError as error:
            self._how = f"nothing in {PATIENCE:.0f} seconds (has the cluster a core for it?)"
            raise EOFError from error
        except self._ray.exceptions.RayError as error:
            self._how = _last_line(error)
            raise EOFError from error

    def answer(self, weights: Weights | None) -> None:
        if weights is not None:
            self._actor.load.remote(weights)
        self._asked.append(self._actor.gather.remote())

    def end(self) -> str:
        self.kill()
        return self._how

    def kill(self) -> None:
        self._ray.kill(self._actor)


def _last_line(error: Exception) -> str:
    """Ray's errors tell a whole story; what happened is at its end."""
    return str(error).strip().splitlines()[-1]
