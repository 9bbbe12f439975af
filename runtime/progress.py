"""How far a run is: a live line on a terminal, now and then a plain one elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Live

WINDOW = 30.0
"""Seconds that speed is averaged over."""


class Progress:
    """Shows step, values, speed and time left, on standard error.

    total    steps in all
    start    the step that this run goes on from
    unit     what `update` counts, for the speed
    every    seconds between plain lines, when standard error isn't a terminal
    quiet    True for no output at all
    console  where to write (for tests)
    clock    seconds (for tests)
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        unit: str = "tokens",
        every: float = 10.0,
        quiet: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._unit, self._every, self._clock = total, unit, every, clock
        self._console = console or Console(file=sys.stderr)
        self._quiet = quiet
        self._last = clock()
        self._shown = start
        self._marks: deque[tuple[float, int, int]] = deque()
        self._count = 0
        self._live: Live | None = None
        if self._console.is_terminal and not quiet:
            self._live = Live(
                BarColumn(24), TextColumn("{task.description}", markup=False), console=self._console, transient=True
            )
            self._task = self._live.add_task("", total=total, completed=start)
            self._live.start()

    def update(self, step: int, count: int, values: Mapping[str, Any]) -> None:
        """After a step: `count` units were done in it; `values` are shown by name, in this order.

        The first call starts the clock, so that compilation doesn't count as training.
        """
        now = self._clock()
        self._count += count
        self._marks.append((now, step, self._count))
        while len(self._marks) > 2 and now - self._marks[1][0] > WINDOW:
            self._marks.popleft()
        due = now - self._last >= self._every or step >= self._total
        if self._live:
            self._live.update(self._task, completed=step, description=self.line(step, values))
        elif due and step > self._shown:
            self._last, self._shown = now, step
            self.note(self.line(step, values))

    @property
    def speed(self) -> float | None:
        """Units a second over the last WINDOW seconds; None before the second update."""
        if len(self._marks) < 2 or self._marks[-1][0] <= self._marks[0][0]:
            return None
        (begin, _, before), (end, _, after) = self._marks[0], self._marks[-1]
        return (after - before) / (end - begin)

    def line(self, step: int, values: Mapping[str, Any]) -> str:
        """What is shown: "step 120/2000  loss 2.314  41,200 tokens/s  3:20 left"."""
        parts = [f"step {step}/{self._total}"]
        parts += [f"{name} {float(value):.4g}" for name, value in values.items()]
        if (speed := self.speed) is not None:
            (begin, first, _), (end, last, _) = self._marks[0], self._marks[-1]
            parts.append(f"{speed:,.0f} {self._unit}/s")
            parts.append(f"{_time((end - begin) / max(last - first, 1) * (self._total - step))} left")
        return "  ".join(parts)

    def note(self, text: str) -> None:
        """A line that stays, above the live one."""
        if not self._quiet:
            self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    def close(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def number_text(value: float) -> str:
    """A measured number as people read it, small ones with their power of ten."""
    return f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.2e}"


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
