"""Wrong models that ports of Gemma 2 have been seen to be, and where each should be found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from planform.compiler.ir import Graph
from planform.compiler.mistakes import mistakes


@dataclass(frozen=True)
class Mutation:
    """edit  makes the wrong graph
    path    of the first value that comes out wrong
    text    what stands in the spec at the place that should be named
    """

    edit: Callable[[Graph], Graph]
    path: str
    text: str


def mutations(graph: Graph) -> dict[str, Mutation]:
    """By name, for a Gemma 2 of an even number of layers."""
    known = {(m.name, m.path): m for m in mistakes(graph)}
    first, second = (n.origin.path for n in graph.walk() if n.op.name == "attend")
    norm = next(path for name, path in known if path.endswith("feed.post.rms_norm"))
    query = next(path for name, path in known if name.startswith("rope"))

    def found(name: str, path: str, text: str, layer: int = 0, at: str | None = None) -> Mutation:
        head, _, tail = (at or path).partition("[")
        logical = f"{head}[{layer}]{tail.partition(']')[2]}" if tail else head
        return Mutation(known[name, path].edit, logical, text)

    return {
        "window dropped": found("attend: window dropped", first, "attention"),
        "window one too long": found("attend: window one longer", first, "attention"),
        "layers in the wrong order": found("attend: layers in the wrong order", first, "attention"),
        "no cap on scores": found("attend: no cap", second, "attention", 1),
        "no cap on logits": found("softcap: left out", "lm.softcap", "softcap"),
        "scale of another head size": found("attend: scale off", second, "attention", 1),
        "mask that looks ahead": found("attend: looks ahead", second, "attention", 1),
        "norm without its offset": found("rms_norm: offset forgotten", norm, "rms_norm"),
        "no rotary positions": found("rope: left out", query, "attention", at=first),
    }
