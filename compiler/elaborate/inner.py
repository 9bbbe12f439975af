"""Inner loops: an input that the loss fits by gradient steps of its own before it is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from planform.spec import Span, ast

from ..ir import Argument, Builder, Init, Origin, Value, free_values, substitute
from ..ops.broadcast import broadcast_to, filled
from ..ops.contract import ParameterDecl
from ..ops.control import Repeat
from ..ops.elementwise import Maximum, Minimum, Mul, Stop, Sub, number
from ..types import Dim, TensorType
from ..values import describe, is_number
from .blocks import Elaborator
from .context import Env, Region

BATCH = "batch"
LEARNED = {"low": 0.005, "high": 0.1, "most": 1.0}
"""Rates that are learned start evenly drawn between `low` and `high` and count as at most `most` (Meta-SGD,
arXiv:1707.09835, with the numbers of arXiv:2201.12204)."""
PLAIN = ("zeros", "ones", "constant")


@dataclass(frozen=True)
class Inner:
    """An `inner` section of a training program, with the places of its entries."""

    variable: str
    start: ast.Expr
    steps: int
    rates: ast.Expr
    loss: ast.Body
    first_order: bool
    remat: bool
    spans: Mapping[str, Span]

    @staticmethod
    def of(values: Mapping[str, Any], spans: Mapping[str, Span]) -> Inner:
        """From the section's values and spans by key. Raises: KeyError for one that is missing."""
        given = {"first_order": False, "remat": False, **values}
        return Inner(**{f.name: given[f.name] for f in fields(Inner) if f.name != "spans"}, spans=spans)


def fit(e: Elaborator, inner: Inner, steps: int | None = None) -> Value:
    """Adds an inner loop to a graph under construction: the variable goes from its start down the gradient of the
    loss, for each entry of the batch by itself. Returns the fitted value; `steps` in place of those written.

    Source: CAVIA (arXiv:1810.03642), as functa use it (arXiv:2201.12204, section 2.3). Raises: SpecError.
    """
    name, spans = inner.variable, inner.spans
    t = _type(e, name, spans["variable"])
    with e.inside("inner"), e.inside(name):
        start = _start(e, inner.start, t)
        rates = _rates(e, inner.rates, name, t)
    builder = Builder(f"{e.builder.name}.inner", stream=e.stream)
    now = builder.add(Argument(name, t, Origin(name, str(spans["variable"]))))
    base = e.base
    e.regions.append(Region(builder, fits=True))
    e.base = len(e.regions) - 1  # parameters belong to the loop's surroundings: the steps share them
    try:
        loss, at = inner_loss(e, inner, now), inner.loss.statements[-1].value.span
        slope = e.gradient(loss, now, at, f"this inner loss doesn't depend on `{name}`")
        if inner.first_order:
            slope = e.emit(Stop(), slope, span=at)
        with e.inside("inner"), e.inside(name):
            after = e.emit(Sub(), now, e.emit(Mul(), slope, rates, span=inner.rates.span), span=inner.rates.span)
    finally:
        e.regions.pop()
        e.base = base
    region = builder.finish({name: after})
    captured = free_values(region)
    arguments = [builder.add(Argument(v.name, v.type, v.origin)) for v in captured]
    region = substitute(replace(region, inputs=(now, *arguments)), dict(zip(captured, arguments)))
    e.builder.origin = Origin(f"inner.{name}", str(spans["variable"]))
    op = Repeat(steps or inner.steps, 1, 0, remat=inner.remat)
    fitted: tuple[Value, ...] = e.builder.emit(op, start, *captured, region=region, hint=name)
    return fitted[0]


def inner_loss(e: Elaborator, inner: Inner, value: Value) -> Value:
    """The loss of each entry of the batch, float[batch], at a value of the variable. Raises: SpecError."""
    before, e.kept = e.kept, BATCH
    try:
        loss = body_value(e, inner.loss, {inner.variable: value})
    finally:
        e.kept = before
    if loss.type.dims != value.type.dims[:1] or not loss.type.is_float:
        raise e.error(
            "PF0512",
            f"an inner loss is one number for each entry of `{BATCH}`, this one is {loss.type}",
            inner.loss.statements[-1].value.span,
            help=f"a mean of what depends on `{inner.variable}` is one: `mse(..)` and `mean(..)` keep `{BATCH}` here",
        )
    return loss


def body_value(e: Elaborator, body: ast.Body, names: Mapping[str, Value]) -> Value:
    """The tensor that a body of a training program comes to. Raises: SpecError."""
    env, result = Env(dict(names)), None
    for s in body.statements:
        result = e.value(s.value, env)
        if s.name is not None:
            env.names[s.name] = result
    return e.tensor(result, body.statements[-1].value)


def _type(e: Elaborator, name: str, span: Span) -> TensorType:
    """The type of the fitted variable: that of the graphs' input of its name. Raises: SpecError."""
    declared = [g.inputs[name] for g in e.spec.graphs.values() if name in g.inputs]
    if not declared:
        inputs = sorted({n for g in e.spec.graphs.values() for n in g.inputs})
        help = f"the graphs' inputs are {', '.join(inputs)}"
        raise e.error("PF0512", f"no graph has an input `{name}` that could be fitted", span, help=help)
    if name in e.own:
        raise e.error("PF0512", f"`{name}` is given by the data, so it can't be fitted", span)
    t = e.declared(declared[0])
    if not t.is_float or not t.rank or t.dims[0].name != BATCH:
        raise e.error("PF0512", f"an inner loop fits floats for each entry of a batch, `{name}` is {t}", span,
                      help=f"its type should be float[{BATCH}, ..]")  # fmt: skip
    return t


def _start(e: Elaborator, expr: ast.Expr, t: TensorType) -> Value:
    """The value before the first step, of the variable's type. Raises: SpecError."""
    value = e.value(expr, Env({}))
    if isinstance(value, Init):
        if value.name not in PLAIN:
            raise e.error("PF0512", f"an inner loop can't start from {value}, which is drawn", expr.span,
                          help="`zeros`, a number, or a tensor of `params`, which is then learned")  # fmt: skip
        value = {"zeros": 0.0, "ones": 1.0}.get(value.name, (*value.arguments, 0.0)[0])
    e.builder.origin = Origin(".".join(e.path), str(expr.span))
    if is_number(value):
        return filled(e.builder, float(value), t)
    return _along(e, e.tensor(value, expr), t, expr)


def _rates(e: Elaborator, expr: ast.Expr, name: str, t: TensorType) -> Value:
    """The step sizes, for each number of the variable or for several. Raises: SpecError."""
    if not (isinstance(expr, ast.Call) and isinstance(expr.function, ast.Name) and expr.function.name == "learned"):
        value = e.value(expr, Env({}))
        if is_number(value):
            return number(e.builder, float(value))
        rates = e.tensor(value, expr)
        _along(e, rates, t, expr)
        return rates
    given = dict(LEARNED)
    places = [a for a in expr.arguments if a.name is None]
    named = [a for a in expr.arguments if a.name is not None]
    if len(places) != 1 or not isinstance(places[0].value, ast.Name) or places[0].value.name != name:
        raise e.error("PF0512", f"`learned` takes the variable of its loop, `{name}`", expr.span,
                      help=f"learned({name}, low=0.005, high=0.1, most=1)")  # fmt: skip
    for a in named:
        value = e.value(a.value, Env({}))
        if a.name not in given or not is_number(value):
            raise e.error("PF0302", f"`learned` has no such argument `{a.name}`" if a.name not in given else
                          f"`{a.name}` is a number, not {describe(value)}", a.value.span,
                          help=f"learned({name}, low=0.005, high=0.1, most=1)")  # fmt: skip
        given[str(a.name)] = float(value)
    for d in t.dims[1:]:
        if not isinstance(d.size, int):
            raise e.error("PF0512", f"a rate for each number of `{name}` needs its sizes, `{d}` has none", expr.span,
                          help="set it under `dims`, or give one rate for all")  # fmt: skip
    decl = ParameterDecl(t.dims[1:], Init("uniform", (given["low"], given["high"])))
    rates = e.parameter("rates", decl, expr.span)
    above = e.emit(Maximum(), rates, number(e.builder, 0.0), span=expr.span)
    clipped: Value = e.emit(Minimum(), above, number(e.builder, given["most"]), span=expr.span)
    return clipped


def _along(e: Elaborator, x: Value, t: TensorType, expr: ast.Expr) -> Value:
    """x along the variable's dims. Raises: SpecError where it has others."""
    mine: list[Dim] = list(t.dims)
    if not x.type.is_float or any(d not in mine for d in x.type.dims):
        raise e.error("PF0512", f"{x.type} doesn't fit the variable, {t}", expr.span)
    return broadcast_to(e.builder, x, t.dims)
