"""Rewrite rules: rows of (name, pattern, result, conditions). Tables of rules are tuples and add with `+`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..ir import Builder, Graph, Node, Value, substitute
from .base import Pass, Trace, use_counts
from .patterns import Match, Matcher, OpPattern

Condition = Callable[[Match, Matcher], str | None]
"""Says why a rule must not fire, or None where it may."""

Result = Value | tuple[Value, ...] | Mapping[Value, Value]

_MOST_SWEEPS = 1000


@dataclass(frozen=True)
class Rule:
    """Where `pattern` matches and no condition objects, `build` makes what stands in its place.

    build       (match, builder) -> the value or values for those of the root node, or a mapping from any
                matched values to their replacements, which must include those of the root
    quiet       near misses are not worth telling (algebra that any two ops nearly match)
    common      the root is an op that mostly stands elsewhere: only what a condition objects to is a near miss
    """

    name: str
    pattern: OpPattern
    build: Callable[[Match, Builder], Result]
    conditions: tuple[Condition, ...] = ()
    quiet: bool = False
    common: bool = False


Rules = tuple[Rule, ...]


@dataclass(frozen=True)
class RewritePass(Pass):
    """A pass that is a table of rules."""

    rules: ClassVar[Rules] = ()

    def run(self, graph: Graph, trace: Trace) -> Graph:
        return apply_rules(graph, self.rules, trace)


def apply_rules(graph: Graph, rules: Rules, trace: Trace) -> Graph:
    """The graph with rules applied, in regions too, until none fires any more.

    Of several rules that match at a node the first wins; of matches that overlap the one further up.
    """
    graph = map_regions(graph, lambda region: apply_rules(region, rules, trace))
    for _ in range(_MOST_SWEEPS):
        sweep = _Sweep(graph, rules)
        if not sweep.fired:
            for rule, node, reason in sweep.missed:
                trace.missed(rule.name, node, reason)
            return graph
        for rule, node in sweep.fired:
            trace.fired(rule.name, node)
        graph = sweep.result()
    raise AssertionError(f"{graph.name}: rules do not come to rest: {sorted({r.name for r, _ in sweep.fired})}")


def map_regions(graph: Graph, change: Callable[[Graph], Graph]) -> Graph:
    """The graph with its regions changed (their inputs and outputs kept); itself where none changes."""
    nodes = tuple(
        n if n.region is None or (new := change(n.region)) is n.region else replace(n, region=new) for n in graph.nodes
    )
    return graph if all(a is b for a, b in zip(nodes, graph.nodes)) else replace(graph, nodes=nodes)


class _Sweep:
    """One look over a graph: matches that do not overlap, found on the graph as it was."""

    def __init__(self, graph: Graph, rules: Rules) -> None:
        self.graph = graph
        self.matcher = Matcher(graph)
        self.builder = Builder.beside(graph)
        self.fired: list[tuple[Rule, Node]] = []
        self.missed: list[tuple[Rule, Node, str]] = []
        self.claimed: set[Node] = set()
        self.replaced: dict[Value, Value] = {}  # by values that were there before
        self.remade: set[Value] = set()
        self.inserted: dict[Node, list[Node]] = {}
        for node in graph.nodes:
            for rule in rules:
                if self._try(rule, node):
                    break

    def _try(self, rule: Rule, node: Node) -> bool:
        match = self.matcher.match(rule.pattern, node)
        if match is None:
            return False
        if match.failures:
            if match.missing == 1 and rule.pattern.size > 1 and not (rule.quiet or rule.common):
                self.missed.append((rule, node, match.failures[0].reason))
            return False
        if self.claimed.intersection(match.nodes):
            return False
        for condition in rule.conditions:
            if reason := condition(match, self.matcher):
                if not rule.quiet:
                    self.missed.append((rule, node, reason))
                return False
        self._replace(rule, match)
        return True

    def _replace(self, rule: Rule, match: Match) -> None:
        node, b = match.root, self.builder
        b.origin, b.nodes = node.origin, []
        found: Any = rule.build(match, b)
        if isinstance(found, Value):
            found = (found,)
        if not isinstance(found, Mapping):
            found = dict(zip(node.outputs, found, strict=True))
        for old, new in found.items():
            assert old.type == new.type, f"rule `{rule.name}` puts {new} in the place of {old}"
        self.fired.append((rule, node))
        self.claimed.update(match.nodes)
        # What was made in the place of a value becomes that value, with its name and origin.
        made = {v for n in b.nodes for v in n.outputs}
        same = {new: old for old, new in found.items() if new in made}
        self.inserted[node] = [
            replace(n, inputs=tuple(same.get(v, v) for v in n.inputs), outputs=tuple(same.get(v, v) for v in n.outputs))
            for n in b.nodes
        ]
        self.remade.update(same.values())
        self.replaced.update((old, new) for old, new in found.items() if same.get(new) is not old)

    def result(self) -> Graph:
        nodes: list[Node] = []
        for node in self.graph.nodes:
            if node in self.inserted:
                nodes += self.inserted[node]
            elif not self.remade.issuperset(node.outputs):
                nodes.append(node)
        graph = substitute(replace(self.graph, nodes=tuple(nodes)), self.replaced)
        # Claimed nodes were copied by `substitute`: tell them by their results.
        gone = {v for n in self.claimed for v in n.outputs}
        return in_order(_without_unused(graph, gone))


def _without_unused(graph: Graph, candidates: set[Value]) -> Graph:
    """The graph without those nodes whose results are candidates and unused."""
    while True:
        used = use_counts(graph)
        kept = tuple(
            n for n in graph.nodes if not (candidates.issuperset(n.outputs) and not any(v in used for v in n.outputs))
        )
        if len(kept) == len(graph.nodes):
            return graph
        graph = replace(graph, nodes=kept)


def in_order(graph: Graph) -> Graph:
    """The graph with nodes moved up where others need them earlier, else in the order they have."""
    producers = graph.producers()
    done: dict[Node, None] = {}

    def place(node: Node) -> None:
        if node in done:
            return
        for v in node.inputs:
            if v in producers:
                place(producers[v])
        done[node] = None

    for node in graph.nodes:
        place(node)
    return replace(graph, nodes=tuple(done))
