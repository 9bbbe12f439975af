"""Ops in simpler ops, until only those are left that a backend takes."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from planform.spec import Diagnostic, Note, SpecError

from ..ir import Builder, Graph, Node, Value, substitute
from .base import Pass, Trace
from .rewriting import map_regions

_DEEPEST = 100  # decompositions within decompositions


@dataclass(frozen=True)
class Decompose(Pass):
    """Expands every op that is not in `keep` through `Op.decompose`, again and again.

    Raises: SpecError (PF0342) for ops that are not in `keep` and have no simpler form.
    """

    name: ClassVar[str] = "decompose"
    keep: frozenset[str] = frozenset()

    def run(self, graph: Graph, trace: Trace) -> Graph:
        graph = map_regions(graph, lambda region: self.run(region, trace))
        b = Builder.beside(graph)
        nodes: list[Node] = []
        same: dict[Value, Value] = {}
        for node in graph.nodes:
            if node.region is not None or node.op.name in self.keep:
                nodes.append(node)
            else:
                made, results = self._expand(b, node, 0)
                nodes += made
                same.update(zip(node.outputs, results, strict=True))
        return substitute(replace(graph, nodes=tuple(nodes)), same) if same else graph

    def _expand(self, b: Builder, node: Node, depth: int) -> tuple[list[Node], tuple[Value, ...]]:
        """The nodes in the place of one, and their results."""
        b.origin, b.nodes = node.origin, []
        found: Any = node.op.decompose(b, *node.inputs)
        made, b.nodes = b.nodes, []
        if found is None or depth > _DEEPEST:
            raise SpecError(_refusal(node))
        results: tuple[Value, ...] = (found,) if isinstance(found, Value) else tuple(found)
        for old, new in zip(node.outputs, results, strict=True):
            assert old.type == new.type, f"`{node.op.name}` decomposes into {new.type}, it is {old.type}"
        nodes: list[Node] = []
        same: dict[Value, Value] = {}
        for inner in made:
            inner = replace(inner, inputs=tuple(same.get(v, v) for v in inner.inputs))
            if inner.op.name in self.keep:
                nodes.append(inner)
                continue
            further, values = self._expand(b, inner, depth + 1)
            nodes += further
            same.update(zip(inner.outputs, values, strict=True))
        return nodes, tuple(same.get(v, v) for v in results)


def decompose(graph: Graph, keep: Set[str]) -> Graph:
    """The graph in ops of `keep` only (and repetitions). Raises: SpecError as `Decompose` does."""
    return Decompose(frozenset(keep))(graph)


def illegal(graph: Graph, keep: Set[str]) -> list[Node]:
    """Nodes, in regions too, whose ops are not in `keep`."""
    return [n for n in graph.walk() if n.region is None and n.op.name not in keep]


def _refusal(node: Node) -> Diagnostic:
    notes = [Note(f"in {node.origin.path}")] if node.origin.path else []
    if node.origin.place:
        notes.append(Note(f"at {node.origin.place}"))
    message = f"`{node.op.name}` has no form that this backend takes"
    help = "give the op a `decompose`, or the backend a rule for it"
    return Diagnostic("PF0342", message, None, notes=tuple(notes), help=help)
