"""What a format is, and what all of them compare."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from planform.compiler.weights import WeightsMap
from planform.spec import Diagnostics, Spec, SpecError, dim_values, load

SHOWN = 40
"""Faults that are listed in a message before "and so on"."""


class Tensors(Protocol):
    """The tensors of a checkpoint by name: a mapping that reads one from disk at each access."""

    folder: Path

    def shape(self, name: str) -> tuple[int, ...]: ...
    def __getitem__(self, name: str) -> np.ndarray: ...
    def __iter__(self) -> Any: ...
    def __contains__(self, name: object) -> bool: ...


@dataclass(frozen=True)
class Found:
    """A checkpoint that fits a spec.

    overrides  those that make the spec from its name and size
    facts      what `run.json` keeps of the checkpoint beside its format
    beside     the folder in which its tokenizer lies
    """

    spec: Spec
    overrides: Sequence[str]
    weights: WeightsMap
    tensors: Tensors
    beside: Path
    facts: Mapping[str, Any] = field(default_factory=dict)


class Format(ABC):
    """One library's checkpoint folders.

    name    of its maps in a spec's `weights`
    layout  what people call it
    """

    name: ClassVar[str]
    layout: ClassVar[str]

    @abstractmethod
    def recognises(self, folder: Path) -> bool:
        """Whether a folder looks like one of these."""

    @abstractmethod
    def read(self, folder: Path, name: str, overrides: Sequence[str]) -> Found:
        """The checkpoint as a size of the spec `name`, which it fits tensor for tensor.

        Raises: UserError naming what differs; SpecError.
        """

    @abstractmethod
    def write(
        self, folder: Path, weights: WeightsMap, get: Callable[[str], np.ndarray], facts: Mapping[str, Any]
    ) -> None:
        """Fills an empty folder; `get` gives the parameters, each asked for once, `facts` are those of `Found` where
        the weights were read from this format. Raises: UserError."""


def faults(found: Tensors, want: WeightsMap) -> list[str]:
    """Every missing, extra or wrongly shaped tensor."""
    names = want.by_name()
    listed = [f"missing: {n} {list(t.shape)}" for n, t in names.items() if n not in found]
    ignored = {n for n in found if any(fnmatchcase(n, glob) for glob in want.ignore)}
    listed += [f"extra: {n} {list(found.shape(n))}" for n in found if n not in names and n not in ignored]
    return listed + [
        f"wrong shape: {n} is {list(found.shape(n))}, expected {list(t.shape)}"
        for n, t in names.items()
        if n in found and found.shape(n) != t.shape
    ]


def lines(listed: Sequence[str]) -> str:
    more = [f"and {len(listed) - SHOWN} more"] if len(listed) > SHOWN else []
    return "".join(f"\n  {line}" for line in [*listed[:SHOWN], *more])


def sizes(name: str) -> tuple[str | None, ...]:
    """The sizes that a name leaves open: the one that it picks, or all that the spec offers. Raises: SpecError."""
    try:
        spec = load(name)
    except SpecError as e:
        if not e.diagnostics[0].expected:
            raise
        return e.diagnostics[0].expected
    return (spec.size,) if name.endswith(f"@{spec.size}") else spec.sizes or (None,)


def differing(spec: Spec, dims: Mapping[str, int]) -> dict[str, int]:
    """Those of the dims that the spec has otherwise."""
    mine = dim_values(spec.dims, Diagnostics())
    return {k: v for k, v in dims.items() if mine.get(k) != v}
