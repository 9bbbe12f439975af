"""Everything that can be said of a spec before anything runs, in one go."""

from __future__ import annotations

from pathlib import Path

from planform.spec import Diagnostic, Diagnostics, Spec, SpecError, check_names, load

from .elaborate import elaborate
from .ops import OPS, load_extensions
from .parameters import INITS
from .program import program
from .recipes import OPTIMIZERS, SCHEDULES, SOURCES

WORDS = ("cycle", *INITS, *OPTIMIZERS, *SCHEDULES, *SOURCES)
"""Names that are neither ops nor blocks."""


def check(spec: Spec) -> list[Diagnostic]:
    """All findings on a spec: names, kinds, dims and shapes of every graph, its training program, sharding.

    Errors in one graph don't hide those of another.
    """
    load_extensions()
    found = Diagnostics()
    found.extend(spec.warnings)
    check_names(spec, [*(n for n, o in OPS.items() if o.spelled), *WORDS], found)
    if found.errors:
        return found.found
    for name in spec.graphs:
        try:
            elaborate(spec, name)
        except SpecError as e:
            found.extend(e.diagnostics)
    if spec.train and not found.errors:
        try:
            program(spec)
        except SpecError as e:
            found.extend(e.diagnostics)
    return found.found


def check_file(path: str | Path, size: str | None = None, overrides: tuple[str, ...] = ()) -> list[Diagnostic]:
    """The same for a file; what keeps it from being read at all is a finding too."""
    try:
        return check(load(path, size, overrides))
    except SpecError as e:
        return list(e.diagnostics)


__all__ = ["check", "check_file"]
