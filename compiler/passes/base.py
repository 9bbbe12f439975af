"""What a pass is, and what it tells about its work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ..ir import Graph, Node, Origin, Value

Outcome = Literal["fired", "near miss", "unused"]


@dataclass(frozen=True)
class Explanation:
    """What one rule did at one place, or why it did nothing there."""

    rule: str
    outcome: Outcome
    op: str
    origin: Origin
    reason: str = ""

    def __str__(self) -> str:
        where = self.origin.path or self.op
        place = f" ({self.origin.place})" if self.origin.place else ""
        return f"{self.rule}: {self.outcome} at {where}{place}" + (f": {self.reason}" if self.reason else "")


@dataclass
class Trace:
    """Collects explanations while passes run; each is kept once."""

    found: dict[Explanation, None] = field(default_factory=dict)

    def fired(self, rule: str, node: Node, reason: str = "") -> None:
        self.found[Explanation(rule, "fired", node.op.name, node.origin, reason)] = None

    def missed(self, rule: str, node: Node, reason: str) -> None:
        self.found[Explanation(rule, "near miss", node.op.name, node.origin, reason)] = None

    @property
    def explanations(self) -> list[Explanation]:
        """What fired, and the near misses of places where the same rule did not fire in the end."""
        done = {(e.rule, e.origin) for e in self.found if e.outcome == "fired"}
        return [e for e in self.found if e.outcome == "fired" or (e.rule, e.origin) not in done]


@dataclass(frozen=True)
class Pass:
    """A pure function from a valid graph to a valid graph; its fields are its options.

    A pass that changes nothing returns the graph it was given.
    """

    name: ClassVar[str]

    def run(self, graph: Graph, trace: Trace) -> Graph:
        raise NotImplementedError

    def __call__(self, graph: Graph, trace: Trace | None = None) -> Graph:
        return self.run(graph, trace if trace is not None else Trace())


class Names:
    """Fresh value names of one graph (a region has names of its own)."""

    def __init__(self, graph: Graph) -> None:
        self._taken = {v.name for v in graph.inputs} | {v.name for n in graph.nodes for v in n.outputs}

    def fresh(self, hint: str) -> str:
        """`hint`, or `hint_2`, `hint_3` .. where that is taken."""
        name, n = hint, 1
        while name in self._taken:
            n += 1
            name = f"{hint}_{n}"
        self._taken.add(name)
        return name


def use_counts(graph: Graph) -> dict[Value, int]:
    """How often nodes and outputs of a graph use each value."""
    counts: dict[Value, int] = {}
    for v in uses(graph):
        counts[v] = counts.get(v, 0) + 1
    return counts


def uses(graph: Graph) -> Iterable[Value]:
    """Every use of a value by a node or as an output."""
    for node in graph.nodes:
        yield from node.inputs
    yield from graph.outputs.values()
