"""Query, key and value projections of one attention as one product."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..ir import Graph, Node, Value
from ..ops.attention import Attend, AttendCached, AttendLocal, Rope
from ..ops.linear import Linear, LinearPacked
from ..ops.norm import LayerNorm, RmsNorm
from .base import Pass, Trace
from .patterns import Matcher
from .rewriting import in_order, map_regions

_THROUGH = (Rope, RmsNorm, LayerNorm)  # what may stand between a projection and the attention core


@dataclass(frozen=True)
class PackQkv(Pass):
    """linear(x, wq), linear(x, wk), linear(x, wv)  ->  linear_packed(x, wq, wk, wv), where all feed one attention.

    Only weights that serve nowhere else are packed, so that laying them side by side copies nothing.
    Gate and up projections of a feed-forward layer are left alone: packing them was measured to gain nothing.
    """

    name: ClassVar[str] = "pack_qkv"

    def run(self, graph: Graph, trace: Trace) -> Graph:
        graph = map_regions(graph, lambda region: self.run(region, trace))
        matcher = Matcher(graph)
        packed: dict[Node, Node | None] = {}  # a projection -> what stands in its place
        for node in graph.nodes:
            if not isinstance(node.op, (Attend, AttendCached, AttendLocal)):
                continue
            found = [_projection(v, node, matcher) for v in node.inputs[:3]]
            group = _largest_group([n for n in found if isinstance(n, Node)])
            reason = _objection(group, found, graph, matcher)
            if reason or any(n in packed for n in group):
                trace.missed(self.name, node, reason or "the projections are packed already")
                continue
            trace.fired(self.name, node, f"{len(group)} projections")
            packed.update(dict.fromkeys(group[1:]))
            packed[group[0]] = _pack(group)
        if not packed:
            return graph
        nodes = [packed.get(n, n) for n in graph.nodes]
        return in_order(replace(graph, nodes=tuple(n for n in nodes if n is not None)))


def _projection(value: Value, user: Node, matcher: Matcher) -> Node | str:
    """The `linear` that an operand of attention comes from, or why there is none."""
    while True:
        node = matcher.producers.get(value)
        if node is None or not isinstance(node.op, (Linear, *_THROUGH)):
            return f"%{value.name} is " + (f"made by `{node.op.name}`" if node else "from outside")
        if use := matcher.other_use(value, user):
            return f"%{value.name} is also used by {use}"
        if isinstance(node.op, Linear):
            return node
        value, user = node.inputs[0], node


def _key(node: Node) -> tuple[object, ...]:
    assert isinstance(node.op, Linear)
    return node.inputs[0], node.op.over, node.op.bias


def _largest_group(nodes: list[Node]) -> list[Node]:
    """Those projections, in order, that share input, summed dims and having a bias or not."""
    groups = [[n for n in dict.fromkeys(nodes) if _key(n) == _key(first)] for first in nodes]
    return max(groups, key=len, default=[])


def _objection(group: list[Node], found: list[Node | str], graph: Graph, matcher: Matcher) -> str | None:
    if len(group) < 2:
        reasons = [n for n in found if isinstance(n, str)]
        return (
            reasons[0]
            if reasons
            else "the projections read different inputs, sum over different dims or differ in bias"
        )
    for node in group:
        for weight in node.inputs[1:]:
            if weight not in graph.inputs:
                return f"%{weight.name} is computed"
            if use := matcher.other_use(weight, node):
                return f"%{weight.name} is also used by {use}"
    return None


def _pack(group: list[Node]) -> Node:
    ops = [n.op for n in group if isinstance(n.op, Linear)]
    inputs = [group[0].inputs[0]]
    for column in zip(*(n.inputs[1:] for n in group)):
        inputs += column
    op = LinearPacked(tuple(o.out for o in ops), ops[0].over, ops[0].bias)
    return replace(group[0], op=op, inputs=tuple(inputs), outputs=tuple(n.output for n in group))
