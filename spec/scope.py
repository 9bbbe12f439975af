"""What a name means where: lexical scope over one namespace of dims, params, blocks, graphs and tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from .ast import Body, Call, Expr, Name
from .model import BlockDef, GraphDef, Spec, TensorDecl
from .source import Span

UNIVERSAL = ("id", "in")
"""Names that mean something everywhere: the identity, and the last dim of a block's input."""


@dataclass(frozen=True)
class Place:
    """Something that holds expressions: where it is, what it binds itself, and what is defined in it."""

    title: str
    bodies: tuple[Body, ...]
    bound: frozenset[str] = frozenset()
    block: BlockDef | None = None


def symbols(spec: Spec) -> dict[str, Span]:
    """The symbolic dims (`batch`, `time`): names that stand alone in an input's type and aren't in `dims`."""
    found: dict[str, Span] = {}
    for decl in declarations(spec):
        for dim in decl.dims:
            if isinstance(dim, Name) and dim.name not in spec.dims:
                found.setdefault(dim.name, dim.span)
    return found


def declarations(spec: Spec) -> Iterator[TensorDecl]:
    for graph in spec.graphs.values():
        yield from graph.inputs.values()


def expression_body(expr: Expr) -> Body:
    """An expression as a body of one nameless statement."""
    from .ast import Statement

    return Body((Statement(None, expr),), expr.span)


def free_names(body: Body, bound: Collection[str] = ()) -> Iterator[tuple[Name, bool]]:
    """Names that neither `bound` nor an earlier statement defines; True with those that a later one does."""
    defined = set(bound)
    later = {s.name for s in body.statements if s.name}
    for statement in body.statements:
        for node in statement.value.walk():
            if isinstance(node, Name) and node.name not in defined:
                yield node, node.name in later
        if statement.name:
            defined.add(statement.name)


def calls(body: Body) -> Iterator[Call]:
    for statement in body.statements:
        for node in statement.value.walk():
            if isinstance(node, Call):
                yield node


def block_names(block: BlockDef) -> Iterator[Name]:
    """The names that a block takes from outside: of its defaults and of its body."""
    for parameter in block.parameters:
        if parameter.default is not None:
            for node in parameter.default.walk():
                if isinstance(node, Name):
                    yield node
    for name, _ in free_names(block.body, [p.name for p in block.parameters]):
        yield name


def output_names(graph: GraphDef) -> tuple[str, ...]:
    """What a caller may select: the declared outputs, else the body's last name."""
    if graph.outputs:
        return graph.outputs
    last = graph.body.statements[-1].name if graph.body.statements else None
    return (last,) if last else ()
