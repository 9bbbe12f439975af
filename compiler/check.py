"""Everything that can be said of a spec before anything runs, in one go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from planform.spec import Diagnostic, Diagnostics, Spec, SpecError, check_names, load

from .check_sharding import check_sharding
from .elaborate import elaborate, sampler
from .ir import Graph
from .ops import OPS, load_extensions
from .parameters import INITS
from .program import Program, program
from .recipes import OPTIMIZERS, SCHEDULES, SOURCES, TARGETS
from .weights import weights_map

WORDS = ("cycle", "grad", "learned", *INITS, *OPTIMIZERS, *SCHEDULES, *TARGETS, *SOURCES)
"""Names that are neither ops nor blocks."""


def check(spec: Spec, mesh: Mapping[str, int] | None = None) -> list[Diagnostic]:
    """All findings on a spec: names, kinds, dims and shapes of every graph, its training program, the maps of
    its weights, sharding.

    With the sizes of a mesh's axes, such as {"data": 2}, also whether everything can be split over it. Errors
    in one graph don't hide those of another.
    """
    load_extensions()
    found = Diagnostics()
    known = [*(n for n, o in OPS.items() if o.spelled), *WORDS]
    check_names(spec, known, found)
    for used in spec.uses.values():
        check_names(used.spec, known, found)
    if found.errors:
        return found.found  # a misspelt name makes others look unused: warnings wait
    found.extend(spec.warnings)
    graphs: list[Graph] = []
    for name in spec.graphs:
        try:
            graphs.append(elaborate(spec, name))
        except SpecError as e:
            found.extend(e.diagnostics)
    made: Program | None = None
    if spec.train and not found.errors:
        try:
            made = program(spec)
        except SpecError as e:
            found.extend(e.diagnostics)
    if spec.sample and not found.errors:
        try:
            graphs.append(sampler(spec).graph)
        except SpecError as e:
            found.extend(e.diagnostics)
    if spec.weights and not found.errors:  # a graph that is missing would leave its tensors without a parameter
        for format in spec.weights.values:
            try:
                weights_map(spec, format, graphs)
            except SpecError as e:
                found.extend(e.diagnostics)
    batch = made.batch // made.accumulate if made else None
    if made and spec.uses:
        graphs += [u.loss for u in made.updates]  # where the tensors of used specs are
    found.extend(check_sharding(spec, graphs, mesh, batch))
    return found.found


def check_file(
    path: str | Path,
    size: str | None = None,
    overrides: tuple[str, ...] = (),
    mesh: Mapping[str, int] | None = None,
) -> list[Diagnostic]:
    """The same for a file; what keeps it from being read at all is a finding too."""
    try:
        return check(load(path, size, overrides), mesh)
    except SpecError as e:
        return list(e.diagnostics)


__all__ = ["check", "check_file"]
