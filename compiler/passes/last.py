"""Generation needs the logits of the last position only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..ir import Graph, Input, Node, State, Value
from ..ops.linear import Linear, Unembed
from ..ops.norm import LayerNorm, RmsNorm, Softmax
from ..ops.sequence import Last
from ..types import TensorType, TypeMismatch
from .base import Names, Pass, Trace
from .stateful import COUNT

_FAMILIES = ("elementwise", "activation")
_OPS = (Linear, Unembed, RmsNorm, LayerNorm, Softmax)


@dataclass(frozen=True)
class LastOnly(Pass):
    """`last_only` as a pass."""

    name: ClassVar[str] = "last_only"

    def run(self, graph: Graph, trace: Trace) -> Graph:
        return last_only(graph)


def last_only(graph: Graph) -> Graph:
    """A step graph whose outputs along the stream [batch, time, ..] are computed for the last valid entry of
    each row only: [batch, 1, ..]. States are updated as before.

    The choice of the last entry moves up through ops that work on every entry alone, as far as nothing else
    needs their results, so that the head runs on one entry and no [batch, time, vocab] exists.
    Raises: ValueError for a graph that is not in step form.
    """
    count = next((v for v in graph.inputs if isinstance(v, Input) and v.name == COUNT and v.default == "full"), None)
    if count is None or graph.stream is None:
        raise ValueError(f"`{graph.name}` is not in step form: put it through `stateful` first")
    states = {v.path for v in graph.inputs if isinstance(v, State)}
    chosen = {k: v for k, v in graph.outputs.items() if k not in states and _has_stream(v.type, graph.stream)}
    if not chosen:
        return graph
    moved = _moved(graph, set(chosen.values()))
    names = Names(graph)
    last: dict[Value, Value] = {}
    nodes: list[Node] = []

    def of(v: Value) -> Value:
        if not _has_stream(v.type, graph.stream):
            return v
        if v not in last:
            last[v] = Value(names.fresh(f"{v.name}.last"), Last().infer(v.type, count.type), v.origin)
            nodes.append(Node(Last(), (v, count), (last[v],), v.origin))
        return last[v]

    for node in graph.nodes:
        if node not in moved:
            nodes.append(node)
            continue
        inputs = tuple(of(v) for v in node.inputs)
        v = node.output
        last[v] = Value(names.fresh(f"{v.name}.last"), Last().infer(v.type, count.type), v.origin)
        nodes.append(replace(node, inputs=inputs, outputs=(last[v],)))
    outputs = {k: of(v) if k in chosen else v for k, v in graph.outputs.items()}
    return replace(graph, nodes=tuple(nodes), outputs=outputs)


def _has_stream(t: TensorType, stream: str | None) -> bool:
    return t.rank >= 2 and t.names[1] == stream


def _moved(graph: Graph, chosen: set[Value]) -> set[Node]:
    """The nodes that can run on the last entries instead: those of which nothing else needs the results."""
    users = graph.users()
    kept = {v for v in graph.outputs.values() if v not in chosen}
    moved: set[Node] = set()
    for node in reversed(graph.nodes):
        v = node.output
        needed = v in kept or any(n not in moved for n in users.get(v, ()))
        wanted = v in chosen or v in users
        if wanted and not needed and _each_entry_alone(node, graph.stream):
            moved.add(node)
    return moved


def _each_entry_alone(node: Node, stream: str | None) -> bool:
    """Whether the op gives the last entry of its result for the last entries of its inputs."""
    if node.op.family not in _FAMILIES and not isinstance(node.op, _OPS):
        return False
    if not _has_stream(node.output.type, stream):
        return False
    if any(v.type.axis(stream or "") is not None and not _has_stream(v.type, stream) for v in node.inputs):
        return False

    def shorter(t: TensorType) -> TensorType:
        return Last().infer(t) if _has_stream(t, stream) else t

    try:
        return node.op.infer(*(shorter(v.type) for v in node.inputs)) == shorter(node.output.type)
    except TypeMismatch:
        return False
