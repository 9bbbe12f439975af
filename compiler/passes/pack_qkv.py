"""Query, key and value projections of one attention as one product."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..ir import Graph, Node
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
            ways = [matcher.way(v, node, (Linear,), _THROUGH) for v in node.inputs[:3]]
            group = _largest_group([way[0] for way in ways if not isinstance(way, str)])
            reason = _objection(group, ways, matcher)
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


def _key(node: Node) -> tuple[object, ...]:
    assert isinstance(node.op, Linear)
    return node.inputs[0], node.op.over, node.op.bias


def _largest_group(nodes: list[Node]) -> list[Node]:
    """Those projections, in order, that share input, summed dims and having a bias or not."""
    groups = [[n for n in dict.fromkeys(nodes) if _key(n) == _key(first)] for first in nodes]
    return max(groups, key=len, default=[])


def _objection(group: list[Node], ways: list[list[Node] | str], matcher: Matcher) -> str | None:
    if len(group) < 2:
        reasons = [way for way in ways if isinstance(way, str)]
        return (
            reasons[0]
            if reasons
            else "the projections read different inputs, sum over different dims or differ in bias"
        )
    return next(filter(None, (matcher.not_its_own(node.inputs[1:], node) for node in group)), None)


def _pack(group: list[Node]) -> Node:
    ops = [n.op for n in group if isinstance(n.op, Linear)]
    inputs = [group[0].inputs[0]]
    for column in zip(*(n.inputs[1:] for n in group)):
        inputs += column
    op = LinearPacked(tuple(o.out for o in ops), ops[0].over, ops[0].bias)
    return replace(group[0], op=op, inputs=tuple(inputs), outputs=tuple(n.output for n in group))
