"""The scale of attention's scores as part of the query's weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..ir import Builder, Graph, Node, Value
from ..ops.attention import Attend, AttendCached, AttendLocal, Rope
from ..ops.elementwise import Mul, number
from ..ops.linear import Linear, LinearPacked
from .base import Pass, Trace
from .patterns import Matcher
from .rewriting import map_regions


@dataclass(frozen=True)
class ScaleQuery(Pass):
    """attend(rope(linear(x, w)), k, v, scale=s)  ->  attend(rope(linear(x, s w)), k, v, scale=1).

    s w is computed when the weights are loaded or exported, and a runtime that has a kernel for one row times a matrix
    has it without a factor. Only weights that serve nowhere else are scaled: none is kept twice.
    """

    name: ClassVar[str] = "scale_query"

    def run(self, graph: Graph, trace: Trace) -> Graph:
        graph = map_regions(graph, lambda region: self.run(region, trace))
        matcher, b = Matcher(graph), Builder.beside(graph)
        instead: dict[Node, list[Node]] = {}
        for node in graph.nodes:
            if not isinstance(node.op, (Attend, AttendCached, AttendLocal)) or node.op.scale == 1:
                continue
            way = _way(node, matcher)
            if isinstance(way, str):
                trace.missed(self.name, node, way)
                continue
            trace.fired(self.name, node)
            product, *ropes = way
            old = (ropes[0] if ropes else node).inputs[0]
            query = _fresh(old, b)
            instead[product] = _scaled(product, old, query, node.op.scale, b)
            for rope in ropes:
                turned = _fresh(rope.output, b)
                inputs = (query, *rope.inputs[1:])
                instead[rope] = [replace(rope, inputs=inputs, outputs=(turned,), origin=rope.origin.primed)]
                query = turned
            instead[node] = [replace(node, op=replace(node.op, scale=1.0), inputs=(query, *node.inputs[1:]))]
        return (
            replace(graph, nodes=tuple(n for old in graph.nodes for n in instead.get(old, [old]))) if instead else graph
        )


def _way(attention: Node, matcher: Matcher) -> list[Node] | str:
    """What the query comes from, a product first; or why it can't be scaled there."""
    query = attention.inputs[0]
    if attention.inputs.count(query) > 1:
        return f"%{query.name} is more than the query"
    way = matcher.way(query, attention, (Linear, LinearPacked), (Rope,))
    if isinstance(way, str):
        return way
    product, *after = (*way, attention)
    weights = [product.inputs[i] for i in _weights(product, after[0].inputs[0])]
    return matcher.not_its_own(weights, product) or way


def _weights(product: Node, result: Value) -> list[int]:
    """Which of a product's inputs are the weight and the bias of a result."""
    parts = product.op.groups(range(len(product.inputs))) if isinstance(product.op, LinearPacked) else None
    return parts[product.outputs.index(result)][1:] if parts else list(range(1, len(product.inputs)))


def _scaled(product: Node, old: Value, new: Value, scale: float, b: Builder) -> list[Node]:
    """The product with `new` in the place of one of its results, which is `scale` times as large."""
    origin = product.origin
    b.origin, b.nodes = replace(origin, path=f"{origin.path}.scale").primed, []
    inputs = list(product.inputs)
    factor = number(b, scale)
    for i in _weights(product, old):
        inputs[i] = b.emit(Mul(), inputs[i], factor, hint="scaled")
    outputs = tuple(new if v is old else v for v in product.outputs)
    return [*b.nodes, replace(product, inputs=tuple(inputs), outputs=outputs, origin=origin.primed)]


def _fresh(value: Value, b: Builder) -> Value:
    return Value(b.fresh(value.name), value.type, value.origin.primed)
