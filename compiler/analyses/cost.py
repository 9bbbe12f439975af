"""What a graph costs, as sizes in its symbols (`batch`, `time`, `capacity`), before anything is allocated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from ..ir import Graph, Input, Node, Value, Weight
from ..ops.contract import Cost
from ..ops.control import Repeat
from ..ops.linear import Embed
from ..passes.stateful import LENGTH
from ..size import Size, divide, evaluate, substitute, symbol
from ..types import DTYPES

CAPACITY = "capacity"


def node_costs(graph: Graph) -> Iterator[tuple[Node, int, Cost]]:
    """(node, how often it runs, the cost of one run) of every node that is no repetition."""
    yield from _costs(graph, 1)


def _costs(graph: Graph, runs: int) -> Iterator[tuple[Node, int, Cost]]:
    for node in graph.nodes:
        if isinstance(node.op, Repeat) and node.region:
            yield from _costs(node.region, runs * node.op.count)
        else:
            yield node, runs, node.op.cost(*(v.type for v in node.inputs))


def total_cost(graph: Graph) -> Cost:
    """Floating-point operations of one evaluation, and the elements it reads and writes, op by op.

    A training step costs about three times the FLOPs: one forward, two backward.
    """
    flops: Size = 0
    elements: Size = 0
    for _, runs, c in node_costs(graph):
        flops, elements = flops + runs * c.flops, elements + runs * c.elements
    return Cost(flops, elements)


@dataclass(frozen=True)
class PerToken:
    """FLOPs for each entry of the stream, and those of one evaluation that do not grow with it.

    Where attention has no window, `flops` depends on the stream's length (its symbol).
    """

    flops: Size
    rest: Size


def flops_per_token(graph: Graph) -> PerToken | None:
    """None for a graph without a stream."""
    entry = next((v for v in graph.inputs if isinstance(v, Input) and graph.stream in v.type.names), None)
    if entry is None or graph.stream is None:
        return None
    axis = entry.type.axis(graph.stream)
    tokens: Size = 1
    for size in entry.type.sizes[: (axis or 0) + 1]:
        tokens = tokens * size
    flops: Size = 0
    rest: Size = 0
    for _, runs, c in node_costs(graph):
        share = divide(c.flops, tokens)
        if share is None:
            rest = rest + runs * c.flops
        else:
            flops = flops + runs * share
    return PerToken(flops, rest)


@dataclass(frozen=True)
class ParameterCount:
    """Numbers held by parameters; `embedding` are those of tables that `embed` reads. `buffers` hold further ones."""

    total: int
    embedding: int
    buffers: int = 0

    @property
    def outside_embedding(self) -> int:
        return self.total - self.embedding


def count_parameters(graph: Graph) -> ParameterCount:
    tables = _embedding_tables(graph, {v: v for v in graph.inputs})
    return ParameterCount(
        sum(map(_numbers, graph.parameters)),
        sum(_numbers(p) for p in graph.parameters if p in tables),
        sum(map(_numbers, graph.buffers)),
    )


def parameters_by_prefix(graph: Graph, depth: int) -> dict[str, int]:
    """Numbers by the first `depth` elements of the path: {"lm.layer[0:26:2]": ..}."""
    found: dict[str, int] = {}
    for p in graph.parameters:
        key = ".".join(p.path.split(".")[:depth])
        found[key] = found.get(key, 0) + _numbers(p)
    return found


def _numbers(p: Weight) -> int:
    return prod(p.type.shape({}))


def _embedding_tables(graph: Graph, origin: dict[Value, Value]) -> set[Value]:
    """The graph's inputs that `embed` reads; `origin` leads arguments of regions back to them."""
    found: set[Value] = set()
    for node in graph.nodes:
        if isinstance(node.op, Embed) and node.inputs[1] in origin:
            found.add(origin[node.inputs[1]])
        elif node.region:
            inner = {a: origin[v] for a, v in zip(node.region.inputs, node.inputs) if v in origin}
            found |= _embedding_tables(node.region, inner)
    return found


@dataclass(frozen=True)
class StateSize:
    """Bytes of streaming state of one stream: `fixed`, and `per_token` for each entry it has room for."""

    fixed: int
    per_token: int

    def at(self, capacity: int) -> int:
        return self.fixed + capacity * self.per_token


def grows(step: Graph) -> bool:
    """Whether the state of a graph in step form grows with the stream. One that doesn't can be fed without end."""
    sizes = (s.type.elements for s in step.states)
    return any(substitute(size, {CAPACITY: 0}) != size for size in sizes)


def state_size(step: Graph) -> StateSize:
    """The state of a graph in step form (see passes/stateful.py), of one stream, in the states' own dtypes.

    A window's ring is fixed; a cache of everything grows with the stream. The entries' count is left out.
    """
    total: Size = 0
    for s in step.states:
        if s.path != LENGTH:
            total = total + s.type.elements * np.dtype(DTYPES[s.type.dtype]).itemsize
    lead = next((s.type for s in step.states if s.path == LENGTH), None)
    one: dict[str, Size] = {str(d): 1 for d in lead.sizes} if lead else {}
    row = substitute(total, {k: v for k, v in one.items() if k.isidentifier()})
    fixed = substitute(row, {CAPACITY: 0})
    more = substitute(row, {CAPACITY: symbol(CAPACITY) + 1}) - row
    return StateSize(evaluate(fixed, {}), evaluate(more, {}))
