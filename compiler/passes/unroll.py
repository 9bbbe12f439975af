"""Repetitions written out, layer by layer, for runtimes without a fast loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, ClassVar

from ..ir import Graph, Input, Node, Origin, State, Value, Weight
from ..ops.control import Repeat
from ..parameters import logical, stack_shape
from .base import Names, Pass, Trace

Layers = list[Any]  # what a repetition stacks: one value for each run, or lists of them


@dataclass(frozen=True)
class Unroll(Pass):
    """`unroll` as a pass."""

    name: ClassVar[str] = "unroll"

    def run(self, graph: Graph, trace: Trace) -> Graph:
        return unroll(graph)


def unroll(graph: Graph) -> Graph:
    """A graph without repetitions.

    Stacked parameters, buffers, states and draws become one for each layer, under their logical names
    (`lm.layer[3].attend.query.weight`); origins get the plain index likewise. A stacked result becomes an
    output for each layer: a state's successor under the state's logical name, another under `name[i]`.
    Raises: ValueError where an op that is no repetition uses a whole stack.
    """
    if not any(n.region for n in graph.nodes):
        return graph
    unrolled = _Unrolled(graph)
    unrolled.run(graph.nodes, ())
    outputs: dict[str, Value] = {}
    for name, v in graph.outputs.items():
        unrolled.name_outputs(outputs, name, unrolled.values[v], ())
    return replace(graph, inputs=tuple(unrolled.inputs), nodes=tuple(unrolled.nodes), outputs=outputs)


def _is_stack(v: Value) -> bool:
    return isinstance(v, (Input, Weight, State)) and v.stacked > 0


class _Unrolled:
    """The new graph in the making; `values` gives the new form of each old value."""

    def __init__(self, graph: Graph) -> None:
        plain = tuple(v for v in graph.inputs if not _is_stack(v))
        self.names = Names(replace(graph, inputs=plain, nodes=()))
        self.values: dict[Value, Any] = {v: v for v in plain}
        self.inputs: list[Value] = []
        self.nodes: list[Node] = []
        for v in graph.inputs:
            if v in self.values:
                self.inputs.append(v)
            else:
                self.values[v] = self._split(v)

    def _split(self, v: Any) -> Layers:
        """A stacked input as one input for each layer."""
        shape = stack_shape(v.path)
        assert len(shape) == v.stacked, f"`{v.path}` is stacked {v.stacked} deep"
        made: list[Any] = []
        for index in product(*map(range, shape)):
            path = logical(v.path, index)
            one = replace(
                v,
                name=self.names.fresh(v.name),
                type=v.type.without(range(v.stacked)),
                origin=replace(v.origin, path=logical(v.origin.path, index)),
                path=path,
                stacked=0,
            )
            self.inputs.append(one)
            made.append(one)
        for n in reversed(shape[1:]):
            made = [made[i : i + n] for i in range(0, len(made), n)]
        return made

    def run(self, nodes: Sequence[Node], index: tuple[int, ...]) -> None:
        """Writes nodes out; `index` counts the runs of the repetitions around them."""
        for node in nodes:
            if isinstance(node.op, Repeat) and node.region:
                self._repeat(node.op, node, node.region, index)
                continue
            inputs = [self.values[v] for v in node.inputs]
            if any(isinstance(v, list) for v in inputs):
                raise ValueError(f"`{node.op.name}` at {node.origin.path} uses a stack of layers as a whole")
            origin = Origin(logical(node.origin.path, index), node.origin.place)
            outputs = tuple(replace(v, name=self.names.fresh(v.name), origin=origin) for v in node.outputs)
            self.nodes.append(replace(node, inputs=tuple(inputs), outputs=outputs, origin=origin))
            self.values.update(zip(node.outputs, outputs))

    def _repeat(self, op: Repeat, node: Node, region: Graph, index: tuple[int, ...]) -> None:
        given = [self.values[v] for v in node.inputs]
        end = op.carries + op.stacks
        carries, stacks, invariants = given[: op.carries], given[op.carries : end], given[end:]
        if not all(isinstance(s, list) for s in stacks):
            raise ValueError(f"the repetition at {node.origin.path} takes slices of a value that some op made")
        made: list[Layers] = [[] for _ in node.outputs[op.carries :]]
        for i in op.order():
            self.values.update(zip(region.inputs, [*carries, *(s[i] for s in stacks), *invariants]))
            self.run(region.nodes, (*index, i))
            results = [self.values[v] for v in region.outputs.values()]
            carries = results[: op.carries]
            for column, value in zip(made, results[op.carries :]):
                column.append(value)
        self.values.update(zip(node.outputs, [*carries, *(op.in_order(column) for column in made)]))

    def name_outputs(self, outputs: dict[str, Value], name: str, value: Any, index: tuple[int, ...]) -> None:
        if isinstance(value, list):
            for i, one in enumerate(value):
                self.name_outputs(outputs, name, one, (*index, i))
        elif stack_shape(name):
            outputs[logical(name, index)] = value
        else:
            outputs[name + "".join(f"[{i}]" for i in index)] = value
