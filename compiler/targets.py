"""Slow copies of graphs: `targets` of a training program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from planform.spec import Diagnostic, Spec, SpecError, ast, did_you_mean

from .elaborate import elaborate
from .ir import Graph
from .parameters import layers
from .recipes import TARGETS, Recipe, read


@dataclass(frozen=True)
class Target:
    """A slow copy of a graph: after every `every`-th step its parameters become decay * what they were + (1 - decay) *
    the graph's, and its buffers the graph's. It starts as the graph does. `graph` is what it computes."""

    name: str
    graph: Graph
    decay: float
    every: int


def read_targets(spec: Spec, section: Mapping[str, ast.Expr], number: Any) -> dict[str, Recipe]:
    """The copies by name; `fields` of each holds the one graph it is of. Raises: SpecError."""
    found = {name: read(how, TARGETS, "slow copy", number) for name, how in section.items()}
    for how in found.values():
        decay, every = how.arguments.get("decay", 0.0), how.arguments["every"]
        if len(how.fields) != 1 or how.fields[0] not in spec.graphs:
            known = did_you_mean(how.fields[0], spec.graphs) if how.fields else None
            _refuse(how, f"`{how.name}` takes a graph of this spec", known or "one of " + ", ".join(spec.graphs))
        if not 0 <= decay < 1:
            _refuse(how, f"{decay:g} is no decay", "it is at least 0 and below 1, such as 0.999")
        if every < 1:
            _refuse(how, f"every {every} steps is never", "`every` is at least 1")
    return found


def target(spec: Spec, name: str, how: Recipe, losses: Iterable[Graph]) -> Target:
    """Raises: SpecError where what is copied isn't part of any loss."""
    graph = elaborate(spec, how.fields[0], name)
    there = {n for loss in losses for w in loss.weights for n in layers(w.path)}
    lost = [n for w in graph.weights for n in layers(w.path) if n.removeprefix(f"{name}.") not in there]
    if lost:
        message = f"no loss of this program has `{lost[0].removeprefix(f'{name}.')}` of `{how.fields[0]}`"
        _refuse(how, message, "copy a graph that is trained")
    return Target(name, graph, how.arguments.get("decay", 0.0), how.arguments["every"])


def _refuse(how: Recipe, message: str, help: str) -> NoReturn:
    raise SpecError(Diagnostic("PF0516", message, how.span, help=help))
