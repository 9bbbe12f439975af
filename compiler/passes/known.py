"""Inputs that are known before a graph runs: the coordinates of one resolution, the same for a whole batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..ir import Builder, Graph, Input, Node, Value, bind, substitute
from ..ops.array import Array
from ..ops.broadcast import Broadcast
from ..ops.control import Repeat
from ..size import Polynomial, evaluate
from .alike import once
from .base import Trace
from .dead import DeadCode


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
    return DeadCode()(once(_inside(graph), trace if trace is not None else Trace()))


def _inside(graph: Graph) -> Graph:
    """The graph, its repetitions making their known invariants themselves."""
    makers = graph.producers()
    nodes = (_told_inside(n, makers) if isinstance(n.op, Repeat) else n for n in graph.nodes)
    return replace(graph, nodes=tuple(replace(n, region=_inside(n.region)) if n.region else n for n in nodes))


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
