"""What is alike for all entries of a batch, computed once: ops without the dims along which operands only repeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..ir import Argument, Builder, Graph, Node, Value, copy, substitute
from ..ops.broadcast import Broadcast
from ..ops.contract import Op
from ..ops.control import Repeat
from ..ops.elementwise import Elementwise
from ..ops.field import BinaryCode, LocalCoordinates, Sine
from ..ops.grid import GridNeighbours, SampleGrid
from ..ops.linear import Linear
from ..ops.reduce import Reduce
from ..ops.take import Put, Take
from ..types import TensorType, TypeMismatch
from .base import Trace

BY_NAME = (Elementwise, Sine, LocalCoordinates, BinaryCode, SampleGrid, GridNeighbours, Linear, Reduce, Take, Put)
"""Ops that mean the same for an operand without one of its dims, along which it only repeats: they go by names."""

Short = dict[Value, Value]
"""What values repeat along the dims that they have more."""


def once(graph: Graph, trace: Trace) -> Graph:
    """The graph with repeated operands left as they are by the ops that go by names, in repetitions as well. The first
    run of a loop that starts from entries that are all alike, as an inner loop does from zeros, stands before it."""
    return _once(graph, trace)[0]


def _once(graph: Graph, trace: Trace) -> tuple[Graph, Short]:
    b, short = Builder.beside(graph), Short()
    outputs = _visit(graph.nodes, b, short, trace)
    found = replace(graph, nodes=tuple(b.nodes))
    return substitute(found, outputs), short


def _visit(nodes: Sequence[Node], b: Builder, short: Short, trace: Trace) -> Short:
    """Adds the nodes to b; `short` grows. Returns what stands in for results of nodes that are no more."""
    gone = Short()
    for old in nodes:
        node = replace(old, inputs=tuple(gone.get(v, v) for v in old.inputs))
        b.origin = node.origin
        if isinstance(node.op, Repeat):
            gone.update(_repeat(node, b, short, trace))
            continue
        if isinstance(node.op, Broadcast) and not node.op.at and not node.op.mean and len(node.op.dims) > 1:
            node = _filled(node, b)
        if isinstance(node.op, Broadcast) and _by_name(node.op, node.inputs[0]):
            short[node.output] = node.inputs[0]
        elif isinstance(node.op, BY_NAME) and any(v in short for v in node.inputs[_first(node.op) :]):
            first = _first(node.op)
            inputs = (*node.inputs[:first], *(short.get(v, v) for v in node.inputs[first:]))
            t, whole = _type(node, inputs), node.output.type
            if t == whole:
                trace.fired("known", node, "an operand is the same for all entries")
                node = replace(node, inputs=inputs)
            elif t is not None and t.dims[-1:] == whole.dims[-1:] and _in_order(t, whole):
                trace.fired("known", node, "computed once for all entries")
                made = Value(b.fresh(node.output.name), t, node.origin)
                b.nodes.append(replace(node, inputs=inputs, outputs=(made,)))
                short[node.output] = made
                node = _whole(node.output, made)
        b.nodes.append(node)
    return gone


def _filled(node: Node, b: Builder) -> Node:
    """A tensor filled with one number, as one entry of it that is repeated."""
    assert isinstance(node.op, Broadcast)
    _, *rest = node.op.dims
    entry = b.emit(Broadcast(tuple(rest)), node.inputs[0], hint=node.output.name)
    return replace(node, op=Broadcast(node.op.dims, tuple(range(1, len(node.op.dims)))), inputs=(entry,))


def _whole(v: Value, made: Value) -> Node:
    """v from what it repeats."""
    at = tuple(map(v.type.dims.index, made.type.dims))
    return Node(Broadcast(v.type.dims, at), (made,), (v,), v.origin)


def _by_name(op: Broadcast, x: Value) -> bool:
    """Whether all that it adds are dims with names before the last one, which several ops take for features or axes."""
    kept = tuple(op.dims[i] for i in op.at)
    return (
        not op.mean
        and x.type.dims == kept
        and len(op.dims) - 1 in op.at
        and all(op.dims[i].name for i in op.others(len(op.dims)))
    )


def _first(op: Op) -> int:
    """The first operand that may lack a dim: what is looked up in is counted by axes, and a sum of everything counts
    its repetitions."""
    if isinstance(op, Reduce) and op.over is None:
        return 1
    return 1 if isinstance(op, (Take, Put)) else 0


def _in_order(t: TensorType, whole: TensorType) -> bool:
    return t.dims == tuple(d for d in whole.dims if d in t.dims)


def _type(node: Node, inputs: tuple[Value, ...]) -> TensorType | None:
    try:
        found = node.op.infer(*(v.type for v in inputs))
    except TypeMismatch:  # it needs the dim
        return None
    return found if isinstance(found, TensorType) else None


# -- repetitions -----------------------------------------------------------------------------------------------


def _repeat(node: Node, b: Builder, short: Short, trace: Trace) -> Short:
    """Adds a repetition that takes what its inputs repeat; as `_visit`."""
    op, region = node.op, node.region
    assert isinstance(op, Repeat) and region is not None
    held = {i for i, v in enumerate(node.inputs) if v in short}
    while True:
        inside, found = _once(_taking(region, op, {i: short[node.inputs[i]].type for i in held}), trace)
        results = list(inside.outputs.values())
        lost = {i for i in held if i < op.carries and _short_type(results[i], found) != short[node.inputs[i]].type}
        if not lost:
            break
        if not (op.stacks or op.remat or len(results) > op.carries):
            return _first_run(node, b, short, trace)
        held -= lost
    kept = {i for i, v in enumerate(results) if v in found and (i in held or i >= op.carries)}
    results = [found[v] if i in kept else v for i, v in enumerate(results)]
    inside = replace(inside, outputs=dict(zip(inside.outputs, results)))
    inputs = tuple(short[v] if i in held else v for i, v in enumerate(node.inputs))
    types = op.infer_region(inside, inputs)
    outputs = tuple(Value(b.fresh(v.name), t, v.origin) if i in kept else v
                    for i, (v, t) in enumerate(zip(node.outputs, types)))  # fmt: skip
    b.nodes.append(replace(node, inputs=inputs, outputs=outputs, region=inside))
    for i in kept:
        short[node.outputs[i]] = outputs[i]
        b.nodes.append(_whole(node.outputs[i], outputs[i]))
    return {}


def _short_type(v: Value, short: Short) -> TensorType | None:
    return short[v].type if v in short else None


def _taking(region: Graph, op: Repeat, types: Mapping[int, TensorType]) -> Graph:
    """The region with some inputs of shorter types, by place; `types` are those of the repetition's inputs."""
    b, inputs, whole = Builder.beside(region), list(region.inputs), Short()
    for i, t in types.items():
        v = inputs[i]
        t = t.without([0]) if op.carries <= i < op.carries + op.stacks else t
        inputs[i] = Argument(b.fresh(v.name), t, v.origin)
        whole[v] = Value(b.fresh(v.name), v.type, v.origin)
        b.nodes.append(_whole(whole[v], inputs[i]))
    return substitute(replace(region, inputs=tuple(inputs), nodes=(*b.nodes, *region.nodes)), whole)


def _first_run(node: Node, b: Builder, short: Short, trace: Trace) -> Short:
    """Adds a loop's first run, which starts from what is alike, and then the others."""
    op = node.op
    assert isinstance(op, Repeat) and node.region is not None
    trace.fired("known", node, "the first run starts alike for all entries")
    first = copy(node.region)
    for v in (v for n in first.nodes for v in n.outputs):
        v.name = b.fresh(v.name)
    first = substitute(first, dict(zip(first.inputs, node.inputs)))
    gone = _visit(first.nodes, b, short, trace)
    made = tuple(gone.get(v, v) for v in first.outputs.values())
    if op.count == 1:
        return dict(zip(node.outputs, made))
    b.origin = node.origin
    return _repeat(replace(node, op=replace(op, count=op.count - 1), inputs=(*made, *node.inputs[op.carries :])),
                   b, short, trace)  # fmt: skip
