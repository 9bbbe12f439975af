"""Common subexpressions are computed once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..ir import Graph, Node, Value
from ..text import op_text, to_text
from .base import Pass, Trace
from .rewriting import map_regions


@dataclass(frozen=True)
class CommonSubexpressions(Pass):
    """Nodes with the same op (and the same region) on the same values become the first of them, which keeps its
    origin: a graph that a loss calls twice on the same input runs once.

    Parameters are values of their own, so equal layers with weights of their own stay apart.
    """

    name: ClassVar[str] = "cse"

    def run(self, graph: Graph, trace: Trace) -> Graph:
        graph = map_regions(graph, lambda region: self.run(region, trace))
        seen: dict[tuple[str, str, tuple[Value, ...]], Node] = {}
        same: dict[Value, Value] = {}
        nodes: list[Node] = []
        for node in graph.nodes:
            inputs = tuple(same.get(v, v) for v in node.inputs)
            key = (op_text(node.op), to_text(node.region) if node.region else "", inputs)
            first = seen.setdefault(key, node)
            if first is node:
                nodes.append(node if inputs == node.inputs else replace(node, inputs=inputs))
            else:
                trace.fired(self.name, node, f"same as at {first.origin.path or first.output.name}")
                same.update(zip(node.outputs, first.outputs))
        if not same:
            return graph
        outputs = {k: same.get(v, v) for k, v in graph.outputs.items()}
        return replace(graph, nodes=tuple(nodes), outputs=outputs)
