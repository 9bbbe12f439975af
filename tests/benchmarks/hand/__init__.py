"""The models written by hand in JAX, the way an expert does without a compiler: our peers.

A module a family. `init(size, form)` makes the parameters of its training step, `loss(size, params, tokens, form)` is
what that step minimises, `form` one of FORMS, "" being the fastest here; `Stream` is its inference.
"""

from __future__ import annotations

import importlib
from typing import Any


def of(spec: str) -> Any:
    """The module of a family."""
    return importlib.import_module(f"tests.benchmarks.hand.{spec}")
