"""Wrong models: small edits of a right graph, each a mistake that ports of Gemma 2 have been seen to make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from planform.compiler.ir import Builder, Graph, Node, Value, rewrite

Edit = Callable[[Graph], Graph]


@dataclass(frozen=True)
class Mutation:
    """edit  makes the wrong graph
    path    of the first value that comes out wrong
    text    what stands in the spec at the place that should be named
    """

    edit: Edit
    path: str
    text: str


def attributes(op: str, path: str, **changed: Any) -> Edit:
    """Gives the ops of that name under that path other attributes."""

    def visit(node: Node, b: Builder, inputs: Sequence[Value]) -> Sequence[Value] | None:
        if node.op.name != op or not node.origin.path.startswith(path):
            return None
        return [b.emit(replace(node.op, **changed), *inputs)]

    return lambda graph: rewrite(graph, visit)


def without(op: str) -> Edit:
    """Leaves the ops of that name out."""

    def visit(node: Node, b: Builder, inputs: Sequence[Value]) -> Sequence[Value] | None:
        return [inputs[0]] if node.op.name == op else None

    return lambda graph: rewrite(graph, visit)


def swapped_windows(graph: Graph) -> Graph:
    """Global attention where local belongs, and the other way round: the layers in the wrong order."""
    windows = [n.op.window for n in graph.walk() if n.op.name == "attend"]  # type: ignore[attr-defined]
    local = next(w for w in windows if w)

    def visit(node: Node, b: Builder, inputs: Sequence[Value]) -> Sequence[Value] | None:
        if node.op.name != "attend":
            return None
        window = None if node.op.window else local  # type: ignore[attr-defined]
        return [b.emit(replace(node.op, window=window), *inputs)]  # type: ignore[call-arg]

    return rewrite(graph, visit)


def mutations(graph: Graph) -> dict[str, Mutation]:
    """By name, for a Gemma 2 of an even number of layers."""
    attends = [n for n in graph.walk() if n.op.name == "attend"]
    first, second = (n.origin.path for n in attends[:2])
    window = next(n.op.window for n in attends if n.op.window)  # type: ignore[attr-defined]
    post = next(n.origin.path for n in graph.walk() if n.origin.path.endswith("feed.post.rms_norm"))

    def layer(path: str, number: int) -> str:
        head, _, tail = path.partition("[")
        return f"{head}[{number}]{tail.partition(']')[2]}"

    return {
        "window dropped": Mutation(attributes("attend", first, window=None), layer(first, 0), "attention"),
        "window one too long": Mutation(attributes("attend", first, window=window + 1), layer(first, 0), "attention"),
        "layers in the wrong order": Mutation(swapped_windows, layer(first, 0), "attention"),
        "no cap on scores": Mutation(attributes("attend", second, softcap=None), layer(second, 1), "attention"),
        "no cap on logits": Mutation(without("softcap"), "lm.softcap", "softcap"),
        "scale of another head size": Mutation(attributes("attend", second, scale=0.1), layer(second, 1), "attention"),
        "mask that looks ahead": Mutation(attributes("attend", second, causal=False), layer(second, 1), "attention"),
        "norm without its offset": Mutation(attributes("rms_norm", post, offset=0.0), layer(post, 0), "rms_norm"),
        "no rotary positions": Mutation(without("rope"), layer(first, 0), "attention"),
    }
