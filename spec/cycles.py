"""Blocks and graphs that contain themselves."""

from __future__ import annotations

from collections.abc import Collection

from .ast import Name
from .diagnostics import Diagnostic, Diagnostics, Note
from .model import Spec
from .prelude import prelude
from .scope import block_names, free_names


def check_cycles(spec: Spec, known: Collection[str], found: Diagnostics) -> None:
    """Adds PF0223 for each circle, with its path. Depth first without recursion: chains may be long."""
    edges: dict[str, list[Name]] = {}
    ours = prelude()
    for block in spec.blocks.values():
        scope = ours if block.prelude else {**spec.blocks, **spec.graphs}
        edges[block.name] = [n for n in block_names(block) if n.name in scope]
    for graph in spec.graphs.values():
        names = (n for n, _ in free_names(graph.body, graph.inputs))
        edges[graph.name] = [n for n in names if n.name in spec.blocks or n.name in spec.graphs]
    done: set[str] = set()
    for root in edges:
        path = dict.fromkeys([root])  # a dict for its order and its quick lookup
        stack = [iter(edges[root])]
        while stack and root not in done:
            name = next(stack[-1], None)
            if name is None:
                done.add(path.popitem()[0])
                stack.pop()
            elif name.name in path:
                found.add(_circle(spec, list(path), name, known))
            elif name.name not in done:
                path[name.name] = None
                stack.append(iter(edges[name.name]))


def _circle(spec: Spec, path: list[str], last: Name, known: Collection[str]) -> Diagnostic:
    circle = path[path.index(last.name) :]
    text = f"`{circle[0]}` contains itself"
    if len(circle) > 1:
        text += ": " + " -> ".join((*circle, circle[0]))
        help = "blocks are built from other blocks, down to ops; break the circle"
    elif circle[0] in known:
        help = "the block hides the op of the same name; give the block another name"
    else:
        help = "a block is repeated with `^`: `layer ^ 12`"
    notes = []
    for name in circle:
        place = spec.blocks[name].span if name in spec.blocks else spec.graphs[name].span
        notes.append(Note(f"`{name}` is defined", place))
    return Diagnostic("PF0223", text, last.span, "the circle closes here", tuple(notes), help)
