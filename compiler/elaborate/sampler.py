"""Samplers: what draws and graphs make at once, or a variable that steps carry from noise to a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from planform.spec import Diagnostic, Section, Span, Spec, SpecError, TensorDecl, ast

from ..ir import Graph, Input, Origin, Value
from ..size import symbol
from ..types import Dim, TensorType
from .blocks import Elaborator
from .draws import draw_type
from .inner import BATCH, body_value

NOW, AFTER = "now", "after"
"""Where a step begins and ends: from 1, all noise, down to 0, each float[batch]."""


@dataclass(frozen=True)
class Steps:
    """How a sample comes about step by step: `variable` is carried from `start` on, in `count` steps of equal length in
    `now`."""

    variable: str
    start: str
    count: int


@dataclass(frozen=True)
class Sampler:
    """A `sample` section.

    steps    None where a sample is made at once
    draws    the random numbers of a sample or a step: what kind, by name
    classes  of those that are categories
    given    further inputs: what to sample (a label)
    graph    from all of these to a sample, `sample`; or one step: from these, the variable, `now` and `after` to the
             variable's next value, `VARIABLE_after`
    """

    steps: Steps | None
    draws: Mapping[str, str]
    classes: Mapping[str, int]
    given: tuple[str, ...]
    graph: Graph = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the graph's inputs."""
        return tuple(v.name for v in self.graph.of_kind(Input))

    @property
    def result(self) -> str:
        """The graph's output."""
        (name,) = self.graph.outputs
        return name

    def type(self, name: str | None = None) -> TensorType:
        """Of an input; without a name, of a sample."""
        if name is None:
            return self.graph.outputs[self.result].type
        return next(v.type for v in self.graph.of_kind(Input) if v.name == name)


def sampler(spec: Spec) -> Sampler:
    """Reads and checks the `sample` section. Raises: SpecError."""
    section = spec.sample
    if section is None:
        raise SpecError(
            Diagnostic(
                "PF0514",
                f"`{spec.name}` doesn't say how it is sampled",
                Span(spec.source, 0, 1),
                help="add a `sample:` section with a value, or with variable, start, steps and step",
            )
        )
    values = section.values
    e = Elaborator(spec, "sample", None)
    e.targets = spec.copies
    draws: Mapping[str, TensorDecl] = values.get("draws") or {}
    known = {g: e.declared(d) for one in spec.graphs.values() for g, d in one.inputs.items()}
    known |= {n: draw_type(e, d) for n, d in draws.items()}
    steps, made = _at_once(e, section, known) if "value" in values else _stepwise(e, section, known)
    result = f"{steps.variable}_{AFTER}" if steps else "sample"
    own = {*draws, *((steps.variable, NOW, AFTER) if steps else ())}
    graph = e.builder.finish({result: made})
    given = tuple(v.name for v in graph.of_kind(Input) if v.name not in own)
    kinds = {n: d.dtype for n, d in draws.items()}
    classes = {n: int(e.declared(d).sizes[-1]) for n, d in draws.items() if d.dtype == "category"}  # type: ignore[arg-type]
    return Sampler(steps, kinds, classes, given, graph)


def _at_once(e: Elaborator, section: Section, known: Mapping[str, TensorType]) -> tuple[None, Value]:
    """A sample. Raises: SpecError where it isn't one for each entry of the batch."""
    body = section.values["value"]
    made = _value(e, section, body, known)
    t = made.type
    if not t.is_float or not t.rank or t.dims[0] != Dim(BATCH, symbol(BATCH)):
        raise e.error("PF0514", f"a sample is floats for each entry of `{BATCH}`, this is {t}",
                      body.statements[-1].value.span, help=f"its type should be float[{BATCH}, ..]")  # fmt: skip
    return None, made


def _stepwise(e: Elaborator, section: Section, known: Mapping[str, TensorType]) -> tuple[Steps, Value]:
    """The steps, and the variable after one. Raises: SpecError where it isn't of the type that it was before."""
    values, spans = section.values, section.spans
    variable, body = values["variable"], values["step"]
    inputs = {n for g in e.spec.graphs.values() for n in g.inputs}
    if variable not in inputs:
        help = "the graphs' inputs are " + ", ".join(sorted(inputs))
        raise e.error("PF0514", f"no graph has an input `{variable}` to sample", spans["variable"], help=help)
    batch = TensorType("f32", (Dim(BATCH, symbol(BATCH)),))
    wanted = known[variable]
    after = _value(e, section, body, {variable: wanted, **known, NOW: batch, AFTER: batch}, variable)
    if after.type != wanted:
        raise e.error("PF0514", f"a step takes `{variable}`, {wanted}, to another of its type, not to {after.type}",
                      body.statements[-1].value.span)  # fmt: skip
    return Steps(variable, values["start"], values["steps"]), after


def _value(e: Elaborator, section: Section, body: ast.Body, known: Mapping[str, TensorType], *always: str) -> Value:
    """What a body comes to; what it reads of `known`, the draws, and `always` become inputs. Raises: SpecError."""
    draws = section.values.get("draws") or {}
    read = {n.name for s in body.statements for n in s.value.walk() if isinstance(n, ast.Name)}.union(draws, always)
    for name in sorted(read & known.keys(), key=list(known).index):
        place = section.spans.get(f"draws.{name}", body.span)
        e.own[name] = e.builder.add(Input(name, known[name], Origin(name, str(place))))
    return body_value(e, body, {})
