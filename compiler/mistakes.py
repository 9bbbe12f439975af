"""Wrong versions of a graph, each wrong in one fact: what a check of models must be able to tell from the right one.

Ops say themselves what ports of them get wrong (`Op.mistakes`: the window one too long, the cap forgotten, the wrong
half rotated). The rest follows from the graph: a step left out, a branch forgotten, a constant that is off, layers in
the wrong order, a tied tensor that is tied no more, a state that isn't carried on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from .ir import Builder, Graph, Node, Parameter, State, Value, rewrite
from .ops.contract import Op
from .ops.control import Repeat
from .ops.elementwise import Constant, Mul, number

OFF = 1.01
"""The factor by which a constant or a copy of a tensor is off."""


@dataclass(frozen=True)
class Mistake:
    """name  what is wrong: `attend: window dropped`
    path  of the value that comes out wrong first
    edit  makes the wrong graph
    """

    name: str
    path: str
    edit: Callable[[Graph], Graph]


def mistakes(graph: Graph) -> list[Mistake]:
    """All of them for a graph, in its order, those of whole layers and tied tensors last."""
    found = [m for node in graph.walk() for m in _of_node(graph, node)]
    return [*found, *_shifted(graph), *_untied(graph)]


def forgotten_states(step: Graph) -> list[Mistake]:
    """For a graph in step form: each state in turn stays what it was."""

    def keep(state: State, graph: Graph) -> Graph:
        return replace(graph, outputs={**graph.outputs, state.path: state})

    return [Mistake("state not carried on", s.path, partial(keep, s)) for s in step.states]


def _of_node(graph: Graph, node: Node) -> Iterator[Mistake]:
    op, out = node.op, node.output
    if isinstance(op, Repeat) or op.trains_only:
        return
    path = out.origin.path
    for name, wrong in op.mistakes(*(v.type for v in node.inputs)).items():
        make = _emitting(wrong) if isinstance(wrong, Op) else wrong
        yield Mistake(f"{op.name}: {name}", path, _at(graph, node, make))
    if isinstance(op, Constant):
        if op.value and op.dtype.startswith(("f", "bf")):
            off = replace(op, value=op.value * OFF)
            yield Mistake(f"constant: {op.value:g} is {off.value:g}", path, _at(graph, node, _emitting(off)))
        return
    same = [i for i, v in enumerate(node.inputs[: len(op.tensors)]) if v.type == out.type]
    if len(node.outputs) == 1:
        for i in same:
            kept = "left out" if len(same) == 1 else f"only the {('first', 'second', 'third')[i]} operand"
            yield Mistake(f"{op.name}: {kept}", path, _at(graph, node, lambda b, *v, i=i: v[i]))


def _emitting(op: Op) -> Callable[..., Value]:
    return lambda b, *inputs: b.emit(op, *inputs)


def _at(graph: Graph, node: Node, make: Callable[..., Value | Sequence[Value]]) -> Callable[[Graph], Graph]:
    """Puts what `make(builder, *inputs)` gives in the place of one node of this graph, or of its like in a graph that
    holds it, such as a loss."""

    def alike(g: Graph) -> list[Value]:
        return [n.output for n in g.walk() if n.op == node.op and n.output.origin.path == node.output.origin.path]

    which = next(i for i, v in enumerate(alike(graph)) if v is node.output)

    def edit(g: Graph) -> Graph:
        target = alike(g)[which]

        def visit(n: Node, b: Builder, inputs: Sequence[Value]) -> Sequence[Value] | None:
            if n.outputs[0] is not target:
                return None
            new = make(b, *inputs)
            return [new] if isinstance(new, Value) else new

        return rewrite(g, visit)

    return edit


def _shifted(graph: Graph) -> Iterator[Mistake]:
    """Layers of a cycle that differ in an op's attributes, each with that of the next: local attention where global
    belongs."""
    kinds: dict[tuple[str, str], list[Node]] = {}
    for node in graph.walk():
        if not isinstance(node.op, Repeat):
            kinds.setdefault((node.op.name, _any_layer(node.output.origin.path)), []).append(node)
    for (name, _), nodes in kinds.items():
        ops = [n.op for n in nodes]
        if len(set(ops)) < 2:
            continue
        turned = dict(zip((_place(n) for n in nodes), [*ops[1:], ops[0]]))

        def visit(
            n: Node, b: Builder, inputs: Sequence[Value], turned: dict[tuple[str, str], Op] = turned
        ) -> Sequence[Value] | None:
            wrong = turned.get(_place(n))
            new = b.emit(wrong, *inputs) if wrong else None
            return [new] if isinstance(new, Value) else new

        first = next(n for n in nodes if turned[_place(n)] != n.op)
        yield Mistake(f"{name}: layers in the wrong order", first.output.origin.path, partial(rewrite, visit=visit))


def _place(node: Node) -> tuple[str, str]:
    return node.op.name, node.output.origin.path


def _any_layer(path: str) -> str:
    return re.sub(r"\[[\d:]+\]", "[*]", path)


def _untied(graph: Graph) -> Iterator[Mistake]:
    """A parameter that several nodes share, another tensor at its last use."""
    for p in graph.of_kind(Parameter):
        users = [n for n in graph.nodes if p in n.inputs and not isinstance(n.op, Repeat)]
        if len(users) < 2:
            continue
        last = users[-1]

        def make(b: Builder, *inputs: Value, p: Value = p, op: Op = last.op) -> Value | Sequence[Value]:
            copy = b.emit(Mul(), p, number(b, OFF))
            return b.emit(op, *(copy if v is p else v for v in inputs))

        yield Mistake(f"{last.op.name}: `{p.path}` tied no more", last.output.origin.path, _at(graph, last, make))
