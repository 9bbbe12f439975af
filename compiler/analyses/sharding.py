"""Sharding by the names of dims: which mesh axes each dim of a tensor is split over.

Rules map dim names to mesh axes, in order. A mesh axis serves once in a tensor: an earlier rule wins and the
later use is replicated. The rules of a used spec are for its own tensors only, and stand as `teacher.vocab`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..types import TensorType

Rules = Sequence[tuple[str, Sequence[str]]]
Spec = tuple[tuple[str, ...] | None, ...]


@dataclass(frozen=True)
class Conflict:
    """A dim that a rule would split over a mesh axis which another dim of the tensor already has."""

    dim: str
    axis: str
    taken_by: str


@dataclass(frozen=True)
class Indivisible:
    """A dim whose size the devices along its mesh axes don't divide."""

    dim: str
    size: int
    devices: int


def normalise(rules: Mapping[str, str | Sequence[str]] | Iterable[tuple[str, str | Sequence[str]]]) -> Rules:
    """Rules with axes as tuples; a mapping keeps its order."""
    pairs = rules.items() if isinstance(rules, Mapping) else rules
    return tuple((name, (axes,) if isinstance(axes, str) else tuple(axes)) for name, axes in pairs)


def within(rules: Rules, path: str) -> Rules:
    """The rules for a tensor at a path of blocks: those of the used spec that the path leads into, else all."""
    name = path.partition(".")[0]
    own = tuple((dim[len(name) + 1 :], axes) for dim, axes in rules if dim.startswith(f"{name}."))
    return own or rules


def spec_for(tensor: TensorType, rules: Rules, mesh_axes: Iterable[str]) -> Spec:
    """For each dim of the tensor the mesh axes it is split over, or None."""
    return _assign(tensor, rules, mesh_axes)[0]


def conflicts(tensor: TensorType, rules: Rules, mesh_axes: Iterable[str]) -> tuple[Conflict, ...]:
    """What the rules ask for and the tensor can't have."""
    return _assign(tensor, rules, mesh_axes)[1]


def indivisible(tensor: TensorType, rules: Rules, mesh: Mapping[str, int]) -> tuple[Indivisible, ...]:
    """The dims of known size that their mesh axes ({"data": 2, ..}) don't divide."""
    found = []
    for dim, axes in zip(tensor.dims, spec_for(tensor, rules, mesh)):
        devices = 1
        for axis in axes or ():
            devices *= mesh[axis]
        if isinstance(dim.size, int) and dim.size % devices:
            found.append(Indivisible(dim.name or "", dim.size, devices))
    return tuple(found)


def _assign(tensor: TensorType, rules: Rules, mesh_axes: Iterable[str]) -> tuple[Spec, tuple[Conflict, ...]]:
    present = set(mesh_axes)
    taken: dict[str, str] = {}
    found: list[tuple[str, ...] | None] = [None] * tensor.rank
    refused: list[Conflict] = []
    for name, axes in rules:
        at = tensor.axis(name)
        if at is None:
            continue
        mine = []
        for axis in axes:
            if axis not in present:
                continue
            if axis in taken:
                refused.append(Conflict(name, axis, taken[axis]))
            else:
                taken[axis] = name
                mine.append(axis)
        found[at] = tuple(mine) or None
    return tuple(found), tuple(refused)
