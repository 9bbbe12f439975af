"""The step form of a causal graph: prefill and token-by-token decoding from the one definition.

A chunk of new entries goes in together with the state of what came before; the outputs for the chunk and
the next state come out. A chunk may be the whole prompt or one token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from planform.spec import Diagnostic, Note, SpecError

from ..analyses.reach import is_along_stream, require_causal, require_state
from ..ir import Argument, Graph, Input, Node, Origin, State, Value, stacked_dim
from ..ops.contract import Op, StateDecl
from ..ops.control import Repeat
from ..ops.elementwise import Add
from ..ops.sequence import Advance
from ..parameters import slice_text, stack_shape
from ..types import Dim, TensorType
from .base import Names, Pass, Trace, uses

LENGTH, COUNT = "length", "count"


@dataclass(frozen=True)
class Stateful(Pass):
    """`stateful` as a pass."""

    name: ClassVar[str] = "stateful"

    def run(self, graph: Graph, trace: Trace) -> Graph:
        return stateful(graph)


def stateful(graph: Graph) -> Graph:
    """The step form of a graph.

    Inputs: those of the graph except positions and documents; `count` int32[batch], how many entries of each
    row are valid (rows are padded at the end; default: all); the parameters; State `length` int32[batch], the
    entries seen so far; and every state of every op, under the path `<op's path>.<state>`, stacked along
    repetitions as parameters are. Outputs: those of the graph, then every state's successor under its path.
    A row is one document: positions run on from `length`.

    A graph already in step form comes back unchanged.
    Raises: SpecError (PF0340) for a graph that isn't causal, naming every op that looks ahead; (PF0341) for
    an op that looks back but keeps no state, or that needs to know documents.
    """
    if graph.states:
        return graph
    require_causal(graph)
    require_state(graph)
    assert graph.stream is not None
    own = [v for v in graph.inputs if not _is_implicit(v, graph.stream)]
    counts = TensorType("i32", _lead(graph))
    names = Names(graph)
    count = Input(names.fresh(COUNT), counts, Origin(COUNT), "full")
    length = State(names.fresh(LENGTH), counts, Origin(LENGTH), LENGTH)

    mapping: dict[Value, Value | None] = {v: v for v in own}
    before: list[Node] = []
    used = set(uses(graph))
    for v in graph.inputs:
        if v in mapping:
            continue
        mapping[v] = None
        if isinstance(v, Input) and v.default == "iota" and v in used:
            position = Value(names.fresh("at"), v.type, v.origin)
            before.append(Node(Advance(v.type.dims[-1]), (length,), (position,), v.origin))
            mapping[v] = position
    level = _Level(graph, names, length, count, {LENGTH}, top=True)
    level.rewrite(mapping)
    following = Value(names.fresh("next_length"), counts, Origin(LENGTH))
    after = Node(Add(), (length, count), (following,), Origin(LENGTH))
    outputs = {name: _present(graph, mapping[v], None) for name, v in graph.outputs.items()}
    return replace(
        graph,
        inputs=(*own, count, length, *(k.entry for k in level.kept)),
        nodes=(*before, *level.nodes, after),
        outputs={**outputs, LENGTH: following, **{k.path: k.successor for k in level.kept}},
    )


def _is_implicit(v: Value, stream: str) -> bool:
    """Whether an input is the stream's position (0, 1, 2 .. by default) or document (one by default)."""
    return (
        isinstance(v, Input)
        and v.default in ("iota", "zeros")
        and v.type.dtype == "i32"
        and v.type.names[-1:] == (stream,)
    )


def _lead(graph: Graph) -> tuple[Dim, ...]:
    """The dims before the stream's, of the first input that has it: one stream for each of their entries."""
    for v in graph.inputs:
        axis = v.type.axis(graph.stream) if graph.stream and isinstance(v, Input) else None
        if axis is not None:
            return v.type.dims[:axis]
    raise SpecError(Diagnostic("PF0340", f"no input of `{graph.name}` runs along `{graph.stream}`", None))


def _present(graph: Graph, value: Value | None, node: Node | None) -> Value:
    """The value, which must not be a dropped `document`. Raises: SpecError (PF0341)."""
    if value is not None:
        return value
    what = f"`{node.op.name}`" if node else "an output"
    notes = (Note(f"in {node.origin.path}"),) if node and node.origin.path else ()
    if node and node.origin.place:
        notes = (*notes, Note(f"at {node.origin.place}"))
    raise SpecError(
        Diagnostic("PF0341", f"{what} depends on documents, so `{graph.name}` has no step form", None, notes=notes)
    )


@dataclass
class _Kept:
    """One state on its way through a level: what comes in under which path, and what goes out."""

    path: str
    stacked: int
    entry: Value
    successor: Value


class _Level:
    """One graph or region being put in step form."""

    def __init__(
        self, graph: Graph, names: Names, length: Value, count: Value, paths: set[str], top: bool = False
    ) -> None:
        self.graph, self.names, self.length, self.count = graph, names, length, count
        self.paths, self.top = paths, top
        self.nodes: list[Node] = []
        self.kept: list[_Kept] = []

    def rewrite(self, mapping: dict[Value, Value | None]) -> None:
        """Rewrites all nodes; `mapping` gives the new form of the level's inputs (None: dropped) and
        receives that of the nodes' values."""
        for node in self.graph.nodes:
            if isinstance(node.op, Repeat) and node.region:
                self._repeat(node.op, node, node.region, mapping)
            elif streaming := self._streaming(node):
                self._op(node, *streaming, mapping)
            else:
                inputs = tuple(_present(self.graph, mapping[v], node) for v in node.inputs)
                self.nodes.append(replace(node, inputs=inputs))
            mapping.update((v, v) for v in node.outputs)

    def _streaming(self, node: Node) -> tuple[Op, tuple[StateDecl, ...]] | None:
        if node.op.reads() and not is_along_stream(node):
            return None
        return node.op.streaming(*(v.type for v in node.inputs))

    def _op(self, node: Node, op: Op, states: tuple[StateDecl, ...], mapping: dict[Value, Value | None]) -> None:
        own = node.inputs[: len(node.inputs) - len(node.op.reads())]
        kept = [self._keep(node.origin, s) for s in states]
        tensors = [_present(self.graph, mapping[v], node) for v in own]
        inputs = (*tensors, *(k.entry for k in kept), self.length, self.count)
        outputs = (*node.outputs, *(k.successor for k in kept))
        self.nodes.append(replace(node, op=op, inputs=inputs, outputs=outputs))

    def _keep(self, origin: Origin, state: StateDecl) -> _Kept:
        path = stem = f"{origin.path or 'state'}.{state.name}"
        n = 1
        while path in self.paths:
            n += 1
            path = f"{stem}_{n}"
        self.paths.add(path)
        element = origin.path.rpartition(".")[2].partition("[")[0]
        return self._pass(path, f"{element}.{state.name}" if element else state.name, state.type, origin, 0)

    def _pass(self, path: str, hint: str, type: TensorType, origin: Origin, stacked: int) -> _Kept:
        """A state that this level takes and hands on."""
        name = self.names.fresh(hint)
        entry = State(name, type, origin, path, stacked) if self.top else Argument(name, type, origin)
        kept = _Kept(path, stacked, entry, Value(self.names.fresh(f"{hint}.next"), type, origin))
        self.kept.append(kept)
        return kept

    def _repeat(self, op: Repeat, node: Node, region: Graph, mapping: dict[Value, Value | None]) -> None:
        names = Names(region)
        length = Argument(names.fresh(LENGTH), self.length.type, self.length.origin)
        count = Argument(names.fresh(COUNT), self.count.type, self.count.origin)
        inner_mapping: dict[Value, Value | None] = {
            argument: argument if mapping[v] is not None else None for argument, v in zip(region.inputs, node.inputs)
        }
        inner = _Level(region, names, length, count, self.paths)
        inner.rewrite(inner_mapping)
        lead = stacked_dim(op.count)
        kept = []
        for k in inner.kept:
            path, stacked = k.path, k.stacked + 1
            if len(stack_shape(path)) < stacked:  # the layers share a graph, whose paths are its own
                path = f"{node.origin.path or 'repeat'}{slice_text(0, op.count, 1)}.{path}"
            t = k.entry.type
            kept.append(self._pass(path, k.entry.name, t.with_dims((lead, *t.dims)), k.entry.origin, stacked))
        slices = op.carries + op.stacks
        outer = [_present(self.graph, mapping[v], node) for v in node.inputs[:slices]]
        arguments: list[Value] = list(region.inputs[:slices])
        outer += [k.entry for k in kept]
        arguments += [k.entry for k in inner.kept]
        for argument, v in zip(region.inputs[slices:], node.inputs[slices:]):
            if (value := mapping[v]) is not None:
                outer.append(value)
                arguments.append(argument)
        if kept:
            outer += [self.length, self.count]
            arguments += [length, count]
        results = [_present(region, inner_mapping[v], None) for v in region.outputs.values()]
        results += [k.successor for k in inner.kept]
        body = replace(
            region,
            inputs=tuple(arguments),
            nodes=tuple(inner.nodes),
            outputs={str(i): v for i, v in enumerate(results)},
        )
        self.nodes.append(
            replace(
                node,
                op=replace(op, stacks=op.stacks + len(kept)),
                inputs=tuple(outer),
                outputs=(*node.outputs, *(k.successor for k in kept)),
                region=body,
            )
        )
