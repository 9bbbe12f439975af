"""One namespace: nothing is defined twice, nothing stands unused, and only block arguments shadow."""

from __future__ import annotations

import re

from .ast import Body, Expr, Name, String
from .diagnostics import Diagnostic, Diagnostics, Note
from .model import Section, Spec, TensorDecl
from .prelude import prelude
from .scope import block_names, free_names, symbols
from .source import Span


def check_namespace(spec: Spec, found: Diagnostics) -> None:
    """Adds PF0221 for each name that is defined twice, with both places."""
    everywhere: dict[str, tuple[str, Span]] = {}

    def define(name: str, what: str, span: Span, scope: dict[str, tuple[str, Span]]) -> None:
        other = scope.get(name) or everywhere.get(name)
        if other is None:
            scope[name] = (what, span)
            return
        found.add(
            Diagnostic(
                "PF0221",
                f"`{name}` is already {other[0]}",
                span,
                f"defined again as {what}",
                (Note(f"first defined as {other[0]}", other[1]),),
                help="dims, params, blocks, graphs and tensors share one namespace; rename one of them",
            )
        )

    for dim in spec.dims.values():
        define(dim.name, "a dim", dim.span, everywhere)
    for name, span in symbols(spec).items():
        define(name, "a dim", span, everywhere)
    for param in spec.params.values():
        define(param.name, "a parameter", param.span, everywhere)
    for block in spec.blocks.values():
        if not block.prelude:
            define(block.name, "a block", block.span, everywhere)
    for graph in spec.graphs.values():
        define(graph.name, "a graph", graph.span, everywhere)
    for used in spec.uses.values():
        define(used.name, "a used spec", used.span, everywhere)
    targets = spec.train.values.get("targets") if spec.train else None
    for name in targets if isinstance(targets, dict) else ():  # the schema reports what is no mapping
        define(name, "a slow copy", spec.train.spans[f"targets.{name}"], everywhere)  # type: ignore[union-attr]
    for graph in spec.graphs.values():
        scope: dict[str, tuple[str, Span]] = {}
        for name in graph.inputs:
            span = spec.spans.get(f"graphs.{graph.name}.inputs.{name}", graph.span)
            define(name, "a tensor", span, scope)
        for statement in graph.body.statements:
            if statement.name and statement.name_span:
                define(statement.name, "a tensor", statement.name_span, scope)
    for block in spec.blocks.values():
        if block.prelude:
            continue
        scope = {p.name: ("an argument of this block", p.span) for p in block.parameters}
        for statement in block.body.statements:
            if statement.name and statement.name_span:
                define(statement.name, "a local name", statement.name_span, scope)


def unused(spec: Spec) -> list[Diagnostic]:
    """PF0222 warnings for dims, params, blocks and used specs that no graph, no loss and no sampler reaches. What
    `extends` brought in may lie idle."""
    seen: set[tuple[str, bool]] = set()
    used: set[str] = set()
    todo: list[tuple[str, bool]] = []  # a name, and whether it was found in the prelude
    ours = prelude()

    def visit(expr: Expr, inside: bool = False) -> None:
        todo.extend((node.name, inside) for node in expr.walk() if isinstance(node, Name))

    for graph in spec.graphs.values():
        todo.extend((name.name, False) for name, _ in free_names(graph.body, graph.inputs))
        todo.extend((word, False) for word in _pattern_words(graph.body))
        for decl in graph.inputs.values():
            for dim in decl.dims:
                visit(dim)
    for section in (spec.train, spec.sample):
        for value in _expressions(section):
            visit(value)
    while todo:
        name, inside = todo.pop()
        if (name, inside) in seen:
            continue
        seen.add((name, inside))
        if inside and name not in ours:
            continue  # the prelude's names mean the prelude's blocks and ops only
        used.add(name)
        if name in spec.blocks:
            block = spec.blocks[name]
            todo.extend((node.name, block.prelude) for node in block_names(block))
            todo.extend((word, block.prelude) for word in _pattern_words(block.body))
        elif name in spec.dims:
            visit(spec.dims[name].value)
        elif name in spec.params:
            param = spec.params[name]
            for expr in (*param.shape, *([param.init] if param.init else [])):
                visit(expr)
    defined = [
        *(("dim", d.name, d.span) for d in spec.dims.values()),
        *(("parameter", p.name, p.span) for p in spec.params.values()),
        *(("block", b.name, b.span) for b in spec.blocks.values() if not b.prelude),
        *(("used spec", u.name, u.span) for u in spec.uses.values()),
    ]
    return [
        Diagnostic(
            "PF0222",
            f"{what} `{name}` is never used",
            span,
            help="remove it, or call it in `train`" if what == "used spec" else "remove it, or use it in a graph",
            severity="warning",
        )
        for what, name, span in defined
        if name not in used and span.source.name == spec.source.name
    ]


def _pattern_words(body: Body) -> list[str]:
    """The names in shape patterns such as "b t (h d) -> b h t d": dims give them their sizes."""
    strings = [e.value for s in body.statements for e in s.value.walk() if isinstance(e, String)]
    return [word for text in strings if "->" in text for word in re.findall(r"[A-Za-z_]\w*", text)]


def _expressions(section: Section | None) -> list[Expr]:
    """Every expression in a section, those of bodies and types included."""
    out: list[Expr] = []
    todo: list[object] = [section.values] if section else []
    while todo:
        value = todo.pop()
        if isinstance(value, Expr):
            out.append(value)
        elif isinstance(value, Body):
            out.extend(s.value for s in value.statements)
        elif isinstance(value, TensorDecl):
            out.extend(value.dims)
        elif isinstance(value, dict):
            todo.extend(value.values())
    return out
