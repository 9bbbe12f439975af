"""Inputs that are known before a graph runs: the coordinates of one resolution, the same for a whole batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..ir import Builder, Graph, Input, Node, Value, bind, substitute
from ..ops.array import Array
from ..ops.broadcast import Broadcast
from ..ops.contract import Op
from ..ops.control import Repeat
from ..ops.elementwise import Elementwise
from ..ops.field import BinaryCode, LocalCoordinates, Sine
from ..ops.grid import GridNeighbours, SampleGrid
from ..ops.linear import Linear
from ..ops.reduce import Reduce
from ..ops.take import Put, Take
from ..size import Polynomial, evaluate
from ..types import TensorType, TypeMismatch
from .base import Trace
from .dead import DeadCode

BY_NAME = (Elementwise, Sine, LocalCoordinates, BinaryCode, SampleGrid, GridNeighbours, Linear, Reduce, Take, Put)
"""Ops that mean the same for an operand without one of its dims, along which it only repeats: they go by names."""


def known(graph: Graph, arrays: Mapping[str, np.ndarray], trace: Trace | None = None) -> Graph:
    """The graph with inputs told: it takes them no more. What follows from them alone is computed once for all entries
    of a batch, in repetitions as well.

    arrays  by input; leading dims may be left out: all their entries are alike, [points, axes] for coordinates
            float[batch, points, axes]

    Raises: KeyError for a name of no input, ValueError for an array that doesn't fit.
    """
    inputs = {v.name: v for v in graph.of_kind(Input)}
    env: dict[str, int] = {}
    for name, array in arrays.items():
        t = inputs[name].type
        dims = t.dims[t.rank - array.ndim :]
        for d, n in zip(dims, array.shape):
            if isinstance(d.size, Polynomial) and str(d.size).isidentifier():
                env[str(d.size)] = n
        if not t.is_float or array.ndim > t.rank or [evaluate(d.size, env) for d in dims] != list(array.shape):
            raise ValueError(f"`{name}` is {t}, not {array.dtype}{list(array.shape)}")
    graph = bind(graph, env)
    b = Builder.beside(graph)
    told: dict[Value, Value] = {}
    for v in [v for v in graph.of_kind(Input) if v.name in arrays]:
        array, b.origin = arrays[v.name], v.origin
        whole = v.type.dims
        at = tuple(range(len(whole) - array.ndim, len(whole)))
        found = b.emit(Array(tuple(np.asarray(array, float).ravel().tolist()), whole[at[0] :]), hint=v.name)
        told[v] = found if array.ndim == len(whole) else b.emit(Broadcast(whole, at), found, hint=v.name)
    kept = tuple(v for v in graph.inputs if v not in told)
    graph = substitute(replace(graph, inputs=kept, nodes=(*b.nodes, *graph.nodes)), told)
    return DeadCode()(_once(graph, trace or Trace()))


def _once(graph: Graph, trace: Trace) -> Graph:
    """The graph with repeated operands left as they are by the ops that go by names."""
    b = Builder.beside(graph)
    makers = graph.producers()
    short: dict[Value, Value] = {}  # what a value repeats
    for node in graph.nodes:
        if isinstance(node.op, Repeat):
            node = _told_inside(node, makers)
            assert node.region is not None
            node = replace(node, region=_once(node.region, trace))
        elif isinstance(node.op, Broadcast) and _by_name(node.op, node.inputs[0]):
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
                node = replace(node, op=Broadcast(whole.dims, tuple(map(whole.dims.index, t.dims))), inputs=(made,))
        b.nodes.append(node)
    return replace(graph, nodes=tuple(b.nodes))


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


def _told_inside(node: Node, makers: Mapping[Value, Node]) -> Node:
    """A repetition that makes its known invariants itself, in place of taking them."""
    op, region = node.op, node.region
    assert isinstance(op, Repeat) and region is not None
    b = Builder.beside(region)
    made: dict[Value, Value] = {}
    for value, argument in list(zip(node.inputs, region.inputs))[op.carries + op.stacks :]:
        chain = [makers[value]] if value in makers else []
        if chain and isinstance(chain[0].op, Broadcast) and chain[0].inputs[0] in makers:
            chain.insert(0, makers[chain[0].inputs[0]])
        if chain and isinstance(chain[0].op, Array):
            found: tuple[Value, ...] = ()
            for n in chain:
                b.origin = n.origin
                found = (b.emit(n.op, *found, hint=argument.name),)
            made[argument] = found[0]
    if not made:
        return node
    kept = [(v, a) for v, a in zip(node.inputs, region.inputs) if a not in made]
    inside = substitute(replace(region, inputs=tuple(a for _, a in kept), nodes=(*b.nodes, *region.nodes)), made)
    return replace(node, inputs=tuple(v for v, _ in kept), region=inside)
