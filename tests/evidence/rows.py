"""Rows of evidence: a claim, the function that measures it, and whether it holds."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Outcome = tuple[Any, bool | str]
"""(the figure: a number, a text or a mapping of them; whether it holds: true, false, or "undecided" where the interval
of a measurement lies on both sides of the aim)"""


@dataclass(frozen=True)
class Row:
    topic: str
    name: str
    aim: str
    measure: Callable[[], Outcome]
    minutes: float

    @property
    def command(self) -> str:
        return f"python -m tests.evidence {self.topic} --only {self.name}"


_ROWS: dict[tuple[str, str], Row] = {}


def row(
    topic: str, name: str, aim: str, minutes: float = 1
) -> Callable[[Callable[[], Outcome]], Callable[[], Outcome]]:
    """Registers a function that measures one claim; `minutes` is how long it takes on two cores."""

    def register(measure: Callable[[], Outcome]) -> Callable[[], Outcome]:
        assert (topic, name) not in _ROWS, f"row {topic}/{name} exists already"
        _ROWS[topic, name] = Row(topic, name, aim, measure, minutes)
        return measure

    return register


def rows(topic: str) -> list[Row]:
    """The rows of a topic, in the order of its files and of the functions in them.

    Raises: ModuleNotFoundError for an unknown topic.
    """
    package = importlib.import_module(f"tests.evidence.{topic}")
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        importlib.import_module(f"tests.evidence.{topic}.{module.name}")
    return [r for (t, _), r in _ROWS.items() if t == topic]
