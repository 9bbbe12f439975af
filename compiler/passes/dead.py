"""Dead code: what no output needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..ir import Graph, Input, Node, Value
from ..ops.control import Repeat
from .base import Pass, Trace


@dataclass(frozen=True)
class DeadCode(Pass):
    """Removes unused nodes, and of repetitions the unused results, carries, slices and invariants.

    A graph keeps its inputs (they are its interface) but for those with a default, which become explicit
    only where they are used.
    """

    name: ClassVar[str] = "dead_code"

    def run(self, graph: Graph, trace: Trace) -> Graph:
        nodes, used = _alive(graph, set(graph.outputs.values()))
        inputs = tuple(v for v in graph.inputs if v in used or not (isinstance(v, Input) and v.default))
        if nodes == graph.nodes and inputs == graph.inputs:
            return graph
        return replace(graph, nodes=nodes, inputs=inputs)


def _alive(graph: Graph, used: set[Value]) -> tuple[tuple[Node, ...], set[Value]]:
    """The nodes behind the used values, and all values used by then."""
    used, kept = set(used), list[Node]()
    for node in reversed(graph.nodes):
        if not used.intersection(node.outputs):
            continue
        if isinstance(node.op, Repeat) and node.region:
            node = _trim(node.op, node, node.region, used)
        used.update(node.inputs)
        kept.append(node)
    return tuple(reversed(kept)), used


def _trim(op: Repeat, node: Node, region: Graph, used: set[Value]) -> Node:
    """A repetition without the results, carries and inputs that nothing needs; itself where all are needed."""
    results = list(region.outputs.values())
    needed = {i for i, v in enumerate(node.outputs) if v in used}
    while True:  # a carry is needed too where the next run reads it
        nodes, inner = _alive(region, {results[i] for i in needed})
        read = {i for i in range(op.carries) if region.inputs[i] in inner}
        if read <= needed:
            break
        needed |= read
    wanted = [i for i, v in enumerate(region.inputs) if (i in needed if i < op.carries else v in inner)]
    if len(wanted) == len(region.inputs) and len(needed) == len(results) and nodes == region.nodes:
        return node
    kept = {k: v for i, (k, v) in enumerate(region.outputs.items()) if i in needed}
    if list(region.outputs) == [str(i) for i in range(len(results))]:
        kept = {str(i): v for i, v in enumerate(kept.values())}
    return replace(
        node,
        op=replace(
            op,
            carries=sum(i < op.carries for i in wanted),
            stacks=sum(op.carries <= i < op.carries + op.stacks for i in wanted),
        ),
        inputs=tuple(node.inputs[i] for i in wanted),
        outputs=tuple(v for i, v in enumerate(node.outputs) if i in needed),
        region=replace(
            region,
            inputs=tuple(region.inputs[i] for i in wanted),
            nodes=nodes,
            outputs=kept,
        ),
    )
