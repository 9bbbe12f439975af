"""Samplers: a variable that a graph carries from noise to a sample, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from planform.spec import Diagnostic, Span, Spec, SpecError, TensorDecl, ast

from ..ir import Graph, Input, Origin
from ..size import symbol
from ..types import Dim, TensorType
from .blocks import Elaborator
from .draws import draw_type
from .inner import BATCH, body_value

NOW, AFTER = "now", "after"
"""Where a step begins and ends: from 1, all noise, down to 0, each float[batch]."""


@dataclass(frozen=True)
class Sampler:
    """A `sample` section.

    variable  the input that is carried, from `start` on
    steps     how many, of equal length in `now`
    draws     the random numbers of a step: what kind, by name
    classes   of those that are categories
    given     further inputs that the step reads: what to sample (a label)
    step      one step: the graph from all of these, `now` and `after` to the variable's next value, `VARIABLE_after`
    """

    variable: str
    start: str
    steps: int
    draws: Mapping[str, str]
    classes: Mapping[str, int]
    given: tuple[str, ...]
    step: Graph = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the inputs of a step."""
        return tuple(v.name for v in self.step.of_kind(Input))

    @property
    def result(self) -> str:
        """The output of a step."""
        return f"{self.variable}_{AFTER}"

    def type(self, name: str) -> TensorType:
        return next(v.type for v in self.step.of_kind(Input) if v.name == name)


def sampler(spec: Spec) -> Sampler:
    """Reads and checks the `sample` section. Raises: SpecError."""
    section = spec.sample
    if section is None:
        raise SpecError(
            Diagnostic(
                "PF0514",
                f"`{spec.name}` doesn't say how it is sampled",
                Span(spec.source, 0, 1),
                help="add a `sample:` section with variable, start, steps and step",
            )
        )
    values, spans = section.values, section.spans
    e = Elaborator(spec, "sample", None)
    e.targets = spec.copies
    draws: Mapping[str, TensorDecl] = values.get("draws") or {}
    types = {g: e.declared(d) for one in spec.graphs.values() for g, d in one.inputs.items()}
    variable, body = values["variable"], values["step"]
    if variable not in types:
        help = "the graphs' inputs are " + ", ".join(sorted(types))
        raise e.error("PF0514", f"no graph has an input `{variable}` to sample", spans["variable"], help=help)
    batch = TensorType("f32", (Dim(BATCH, symbol(BATCH)),))
    known = {**types, NOW: batch, AFTER: batch, **{n: draw_type(e, d) for n, d in draws.items()}}
    read = [n for n in known if n in (variable, *draws) or n in _names(body)]
    for name in (variable, *(n for n in read if n != variable)):
        place = spans.get(f"draws.{name}", spans["step"])
        e.own[name] = e.builder.add(Input(name, known[name], Origin(name, str(place))))
    after = body_value(e, body, {})
    wanted = types[variable]
    if after.type != wanted:
        raise e.error("PF0514", f"a step takes `{variable}`, {wanted}, to another of its type, not to {after.type}",
                      body.statements[-1].value.span)  # fmt: skip
    given = tuple(n for n in read if n not in (variable, NOW, AFTER, *draws))
    graph = e.builder.finish({f"{variable}_{AFTER}": after})
    kinds = {n: d.dtype for n, d in draws.items()}
    classes = {n: int(e.declared(d).sizes[-1]) for n, d in draws.items() if d.dtype == "category"}  # type: ignore[arg-type]
    return Sampler(variable, values["start"], values["steps"], kinds, classes, given, graph)


def _names(body: ast.Body) -> set[str]:
    return {n.name for s in body.statements for n in s.value.walk() if isinstance(n, ast.Name)}
