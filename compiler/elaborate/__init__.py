"""Spec to graph: evaluates the block algebra and builds the IR.

Expressions have values of four kinds (values.py). Applying a block to a tensor emits nodes; every use makes
parameters of its own, named by the path of blocks that led there. A repetition is elaborated once, as a
region. Mistakes become diagnostics with the place, the path of blocks and the sizes that were involved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from planform.spec import Diagnostic, GraphDef, Span, Spec, SpecError, TensorDecl, ast, did_you_mean

from ..ir import Graph, Input, Origin, Value
from ..ops import load_extensions
from ..types import TensorType
from .blocks import Elaborator
from .context import Env, stream_of
from .draws import add_draws
from .inner import Inner, body_value, fit, inner_loss
from .sampler import AFTER, NOW, Sampler, Steps, sampler

PRIORITY = "priority"
"""The output of a loss that says how much there was to learn from each entry of the batch."""

__all__ = ["AFTER", "NOW", "PRIORITY", "Elaborator", "Env", "Inner", "Sampler", "Steps", "elaborate", "elaborate_fit",
           "elaborate_loss", "sampler", "stream_of"]  # fmt: skip


def elaborate(spec: Spec, graph: str | None = None, target: str | None = None) -> Graph:
    """The IR of one graph of a spec (the only one, if none is named), or of its slow copy, by the name that this has in
    the training program. Raises: SpecError."""
    g = _choose(spec, graph)
    e = Elaborator(spec, target or g.name, stream_of(g, spec))
    load_extensions()
    with _bounded(g.span), e.copied(target) if target else nullcontext():
        inputs = {n: e.builder.add(Input(n, e.declared(d), Origin(n, str(d.span)))) for n, d in g.inputs.items()}
        outputs = e.run_graph(g.name, list(inputs.values()), g.span)
    return e.builder.finish(outputs.values)


def elaborate_loss(
    spec: Spec,
    loss: ast.Body,
    inputs: Mapping[str, TensorType],
    name: str = "loss",
    training: bool = True,
    inner: Inner | None = None,
    metrics: Mapping[str, ast.Body] = MappingProxyType({}),
    draws: Mapping[str, TensorDecl] = MappingProxyType({}),
    targets: Mapping[str, str] = MappingProxyType({}),
    priority: ast.Body | None = None,
) -> Graph:
    """The IR of a loss expression over graphs, those of used specs too, and data tensors; its output is `loss`, a
    scalar. The parameters of a used spec are frozen, under paths that begin with its name.

    In training form dropout draws and acts, and what keeps buffers changes them: their last values are further outputs,
    by path. Otherwise dropout is the identity and buffers are constants, as for held-out data. An inner loop
    comes first: its variable means the fitted value. Metrics are further scalars, by name; draws are random numbers
    that all of these may name; targets name slow copies and the graphs that they are of. A priority is one more output,
    a number for each entry of the batch; it may name what the loss defines.

    Raises: SpecError.
    """
    e = _for_training(spec, name, training)
    load_extensions()
    with _bounded(loss.span):
        _give(e, inputs)
        e.targets = targets
        add_draws(e, draws)
        if inner is not None:
            e.own[inner.variable] = fit(e, inner)
        names: dict[str, Any] = {}
        outputs = {"loss": _scalar(e, loss, "loss", names)}
        outputs |= {key: _scalar(e, body, key, {}) for key, body in metrics.items()}
        if priority is not None:
            outputs[PRIORITY] = _for_each(e, priority, names)
    return e.builder.finish({**outputs, **e.regions[0].successors})


def elaborate_fit(
    spec: Spec,
    inner: Inner,
    inputs: Mapping[str, TensorType],
    name: str = "fit",
    steps: int | None = None,
    metrics: Mapping[str, ast.Body] = MappingProxyType({}),
) -> Graph:
    """The IR of an inner loop by itself: from data tensors to its variable's fitted value, and then `loss` and metrics
    of each entry of the batch. `steps` in place of those written. Raises: SpecError."""
    e = _for_training(spec, name, training=False)
    load_extensions()
    with _bounded(inner.loss.span):
        _give(e, inputs)
        fitted = fit(e, replace(inner, remat=False), steps)  # nothing is differentiated any more
        measured = {key: inner_loss(e, replace(inner, loss=body), fitted) for key, body in metrics.items()}
        return e.builder.finish({inner.variable: fitted, "loss": inner_loss(e, inner, fitted), **measured})


def _for_training(spec: Spec, name: str, training: bool) -> Elaborator:
    streams = {stream_of(g, spec) for g in spec.graphs.values()} - {None}
    return Elaborator(spec, name, next(iter(streams)) if len(streams) == 1 else None, training)


def _give(e: Elaborator, inputs: Mapping[str, TensorType]) -> None:
    """Makes data tensors known to the expressions of a training program, and what it may call."""
    e.own = {n: e.builder.add(Input(n, t, Origin(n))) for n, t in inputs.items()}
    e.others = e.spec.uses


def _for_each(e: Elaborator, body: ast.Body, names: dict[str, Any]) -> Value:
    value = body_value(e, body, names)
    if value.type.names != ("batch",) or not value.type.is_float:
        raise e.error("PF0517", f"a priority is one float for each entry of the batch, this is {value.type}",
                      body.statements[-1].value.span)  # fmt: skip
    return value


def _scalar(e: Elaborator, body: ast.Body, what: str, names: dict[str, Any]) -> Value:
    value = body_value(e, body, names)
    if value.type.rank:
        a = "a loss" if what == "loss" else f"the metric `{what}`"
        raise e.error(
            "PF0501",
            f"{a} is a scalar, this is {value.type}",
            body.statements[-1].value.span,
            help="mean(..) or sum(..) makes one",
        )
    return value


def _choose(spec: Spec, graph: str | None) -> GraphDef:
    if graph is None and len(spec.graphs) == 1:
        return next(iter(spec.graphs.values()))
    if graph in spec.graphs:
        return spec.graphs[graph]
    span = spec.spans.get("graphs") or Span(spec.source, 0, 1)
    names = ", ".join(spec.graphs)
    raise SpecError(
        Diagnostic(
            "PF0229",
            f"no graph `{graph}`" if graph else "this spec has several graphs",
            span,
            help=(did_you_mean(graph, spec.graphs) if graph else None) or f"one of {names}",
        )
    )


@contextmanager
def _bounded(span: Span) -> Iterator[None]:
    try:
        yield
    except RecursionError:
        raise SpecError(
            Diagnostic(
                "PF0333",
                "blocks are nested too deeply",
                span,
                help="a block that uses itself, even through its arguments, never ends",
            )
        ) from None
