"""The configuration of another library's checkpoints: what in it sets a dim, and what must be as the spec has it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from planform.spec import Diagnostics, Spec, dim_values


@dataclass(frozen=True)
class Configuration:
    """fields  dotted path of a field -> the name of a dim of the spec, or the value that the field must have; a list
    is cycled through the layers"""

    fields: Mapping[str, Any]
    spec: Spec

    def _each(self, told: Mapping[str, Any] | None = None) -> Iterator[tuple[str, Any, Any]]:
        """(field, what it must be, what it is told to be); the entries of a list of dims one by one, as `field.0`."""
        for field, want in self.fields.items():
            value = _field(told or {}, field)
            if isinstance(want, list) and all(isinstance(w, str) and w in self.spec.dims for w in want):
                values = value if isinstance(value, list) and len(value) == len(want) else [_MISSING] * len(want)
                yield from ((f"{field}.{i}", w, v) for i, (w, v) in enumerate(zip(want, values)))
            else:
                yield field, want, value

    def dims(self, told: Mapping[str, Any]) -> dict[str, int]:
        """The dims that a configuration of theirs sets.

        Raises: ValueError naming the field that is missing or that the spec can't express.
        """
        found: dict[str, int] = {}
        for field, want, value in self._each(told):
            if value is _MISSING and isinstance(want, str) and want in self.spec.dims:
                raise ValueError(f"config.json: `{field}`, which sets {want}, is missing")
            if isinstance(want, str) and want in self.spec.dims:
                if isinstance(value, bool) or not isinstance(value, int):
                    raise ValueError(f"config.json: `{field}` sets {want} and must be a whole number, it is {value!r}")
                if found.setdefault(want, value) != value:
                    raise ValueError(f"config.json: `{field}` is {value}, but {want} is {found[want]} already")
            elif value is not _MISSING and not _same(value, want):
                raise ValueError(
                    f"config.json: `{field}` is {value!r}, and {self.spec.name} has {_cycled(value, want)!r} built in"
                )
        return found

    def of_spec(self) -> dict[str, Any]:
        """Their configuration of this spec at its size."""
        sizes = dim_values(self.spec.dims, Diagnostics())
        out: dict[str, Any] = {}
        for field, want in self.fields.items():
            value = sizes[want] if isinstance(want, str) and want in sizes else want
            if isinstance(want, list) and all(isinstance(w, str) and w in sizes for w in want):
                value = [int(sizes[w]) for w in want]
            elif isinstance(want, list):
                value = _cycled([None] * int(sizes.get("layers", len(want))), want)
            *path, last = field.split(".")
            place = out
            for key in path:
                place = place.setdefault(key, {})
            place[last] = value
        return out


_MISSING = object()


def _field(told: Mapping[str, Any], field: str) -> Any:
    """The value at a dotted path; a field that is null is not one that is missing."""
    value: Any = told
    for key in field.split("."):
        value = value.get(key, _MISSING) if isinstance(value, Mapping) else _MISSING
    return value


def _cycled(value: Any, want: Any) -> Any:
    return (
        [want[i % len(want)] for i in range(len(value))] if isinstance(want, list) and isinstance(value, list) else want
    )


def _same(value: Any, want: Any) -> bool:
    if isinstance(want, list):
        return isinstance(value, list) and value == _cycled(value, want)
    if isinstance(want, float) or isinstance(value, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value - want) <= 1e-9 * abs(want)
    return bool(value == want)
