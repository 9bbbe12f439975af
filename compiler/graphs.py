"""The graphs that a spec has by name, those of its training and sampling programs among them."""

from __future__ import annotations

from collections.abc import Mapping

from planform.spec import Spec

from .elaborate import elaborate, elaborate_fit, sampler
from .ir import Graph
from .program import program

FIT, SAMPLE = "fit", "sample"


def graph_named(spec: Spec, name: str | None = None) -> Graph:
    """A graph of a spec by its name (the only one, if none is given); unless a graph has that name, `fit` is the inner
    loop of its training program, from data to the fitted value and its loss, gradients included, and `sample` one step
    of its sampler. Raises: SpecError."""
    found = _others(spec) if name in (FIT, SAMPLE) and name not in spec.graphs else {}
    return found[name] if name in found else elaborate(spec, name)


def _others(spec: Spec) -> Mapping[str | None, Graph]:
    found: dict[str | None, Graph] = {}
    updates = program(spec).updates if spec.train else ()
    update = next((u for u in updates if u.inner), None)
    if update is not None and update.inner is not None:
        data = {v.name: v.type for v in update.heldout.inputs if v.name in program(spec).data.fields}
        found[FIT] = elaborate_fit(spec, update.inner, data)
    if spec.sample:
        found[SAMPLE] = sampler(spec).step
    return found
