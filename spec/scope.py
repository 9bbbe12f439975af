"""What a name means where: lexical scope over one namespace of dims, params, blocks, graphs and tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from .ast import Body, Expr, Name, Statement
from .model import BlockDef, GraphDef, Spec, TensorDecl
from .source import Span

UNIVERSAL = ("id", "in")
"""Names that mean something everywhere: the identity, and the last dim of a block's input."""


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


def block_names(block: BlockDef) -> Iterator[Name]:
    """The names that a block takes from outside: of its defaults and of its body."""
    for body, bound in bodies(block):
        for name, _ in free_names(body, bound):
            yield name


def bodies(block: BlockDef) -> Iterator[tuple[Body, frozenset[str]]]:
    """The defaults and the body of a block with the names bound there; a default sees the parameters before it."""
    bound: frozenset[str] = frozenset()
    for parameter in block.parameters:
        if parameter.default is not None:
            yield expression_body(parameter.default), bound
        bound |= {parameter.name}
    yield block.body, bound


def output_names(graph: GraphDef) -> tuple[str, ...]:
    """What a caller may select: the declared outputs, else the body's last name."""
    if graph.outputs:
        return graph.outputs
    last = graph.body.statements[-1].name if graph.body.statements else None
    return (last,) if last else ()
