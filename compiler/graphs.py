"""The graphs that a spec has by name, those of its training and sampling programs among them."""

from __future__ import annotations

from planform.spec import Spec

from .elaborate import elaborate, elaborate_fit, sampler
from .ir import Graph
from .program import program

FIT, SAMPLE = "fit", "sample"


def graph_named(spec: Spec, name: str | None = None) -> Graph:
    """A graph of a spec by its name (the only one, if none is given); unless a graph has that name, `fit` is the inner
    loop of its training program, from data to the fitted value and its loss, gradients included, and `sample` its
    sampler, or one step of it. A slow copy of a graph has its name in the training program. Raises: SpecError."""
    if spec.train and name in (spec.train.values.get("targets") or {}):
        return next(t.graph for t in program(spec).targets if t.name == name)
    if name not in (FIT, SAMPLE) or name in spec.graphs:
        return elaborate(spec, name)
    if name == SAMPLE and spec.sample:
        return sampler(spec).graph
    if name == FIT and spec.train:
        chosen = program(spec)
        update = next((u for u in chosen.updates if u.inner), None)
        if update is not None and update.inner is not None:
            data = {v.name: v.type for v in update.heldout.inputs if v.name in chosen.data.fields}
            return elaborate_fit(spec, update.inner, data)
    return elaborate(spec, name)  # which says that there is none
