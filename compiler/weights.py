"""Other libraries' checkpoints: the `weights` section as a two-way map between parameters and tensors.

`lm.layer[*].feed.glu.gate.weight: model.layers.*.mlp.gate_proj.weight >> "ff d -> d ff"` says where a logical
parameter lives over there and how its layout turns into ours; read backwards, it writes their files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import EinopsError, rearrange

from planform.spec import Diagnostic, Diagnostics, Note, Section, Span, Spec, SpecError, did_you_mean, dim_values

from .ir import Graph
from .parameters import layers, stack_shape

_ENTRY = re.compile(r'(?P<name>[^\s>]+)\s*(?:>>\s*"(?P<pattern>[^"]*)")?')


@dataclass(frozen=True)
class Tensor:
    """One tensor of theirs: its name, the logical parameter it holds, and the way from their layout to ours."""

    name: str
    parameter: str
    shape: tuple[int, ...]  # ours
    pattern: str | None
    sizes: Mapping[str, int]
    span: Span | None = None

    @property
    def their_shape(self) -> tuple[int, ...]:
        # A broadcast zero has the shape without the memory.
        return self.to_theirs(np.broadcast_to(np.zeros((), np.int8), self.shape)).shape

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """Raises: ValueError where the array has another shape than it should."""
        if tuple(array.shape) != self.their_shape:
            raise ValueError(f"`{self.name}` has shape {list(array.shape)}, expected {list(self.their_shape)}")
        return rearrange(array, self.pattern, **self._known(self.pattern, 0)) if self.pattern else array

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        if not self.pattern:
            return array
        left, _, right = self.pattern.partition("->")
        back = f"{right.strip()} -> {left.strip()}"
        return rearrange(array, back, **self._known(back, 0))

    def _known(self, pattern: str, side: int) -> dict[str, int]:
        words = set(re.findall(r"\w+", pattern.split("->")[side]))
        return {k: v for k, v in self.sizes.items() if k in words}


@dataclass(frozen=True)
class WeightsMap:
    """A checked bijection between the parameters of a spec's graphs and another library's tensors."""

    format: str
    architecture: str | None
    config: Mapping[str, Any]  # field -> name of a dim, or the value it must have
    tensors: tuple[Tensor, ...]
    ignore: tuple[str, ...]
    spec: Spec

    def by_name(self) -> dict[str, Tensor]:
        return {t.name: t for t in self.tensors}

    def by_parameter(self) -> dict[str, Tensor]:
        return {t.parameter: t for t in self.tensors}

    def dims(self, config: Mapping[str, Any]) -> dict[str, int]:
        """The dims that a configuration of theirs sets.

        Raises: ValueError naming the field that is missing or that the spec can't express.
        """
        found: dict[str, int] = {}
        for field, want in self.config.items():
            value = _field(config, field)
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

    def their_config(self) -> dict[str, Any]:
        """Their configuration of this spec at its size."""
        sizes = dim_values(self.spec.dims, Diagnostics())
        out: dict[str, Any] = {}
        for field, want in self.config.items():
            value = sizes[want] if isinstance(want, str) and want in sizes else want
            if isinstance(want, list):
                value = _cycled([None] * int(sizes.get("layers", len(want))), want)
            *path, last = field.split(".")
            place = out
            for key in path:
                place = place.setdefault(key, {})
            place[last] = value
        return out


_MISSING = object()


def _every_layer(path: str) -> str:
    """`lm.layer[3].norm` -> `lm.layer[*].norm`."""
    return re.sub(r"\[\d+\]", "[*]", path)


def _field(config: Mapping[str, Any], field: str) -> Any:
    """The value at a dotted path; a field that is null is not one that is missing."""
    value: Any = config
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


def weights_map(spec: Spec, graphs: list[Graph], format: str = "huggingface") -> WeightsMap:
    """The checked map of one format: every parameter of the graphs stands in exactly one tensor, and every
    pattern turns into the parameter's shape and back.

    Raises: SpecError (PF06xx) at the entry that is wrong, or naming the parameters that are left out.
    """
    section = spec.weights
    if section is None or format not in section.values:
        have = ", ".join(section.values) if section else "none"
        raise SpecError(
            Diagnostic(
                "PF0600",
                f"`{spec.name}` has no weights map for {format}; it has {have}",
                section.span if section else Span(spec.source, 0, 1),
            )
        )
    return _Reader(spec, section, format, graphs).read()


class _Reader:
    def __init__(self, spec: Spec, section: Section, format: str, graphs: list[Graph]) -> None:
        self.spec, self.section, self.format = spec, section, format
        self.found = Diagnostics()
        self.sizes = {k: int(v) for k, v in dim_values(spec.dims, self.found).items() if float(v).is_integer()}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for graph in graphs:
            for p in graph.parameters:
                shape = p.type.shape({})[len(stack_shape(p.path)) :]
                self.shapes.update(dict.fromkeys(layers(p.path), shape))

    def read(self) -> WeightsMap:
        values = self.section.values[self.format]
        tensors: dict[str, Tensor] = {}
        held: dict[str, Tensor] = {}
        for path, text in values["tensors"].items():
            span = self.section.spans.get(f"{self.format}.tensors.{path}", self.section.span)
            for t in self.entry(path, text, span):
                for key, seen in ((t.name, tensors), (t.parameter, held)):
                    if key in seen:
                        where = seen[key].span
                        self.add(
                            "PF0602", f"`{key}` is mapped twice", span, [Note("first here", where)] if where else []
                        )
                tensors[t.name] = held[t.parameter] = t
        missing = list(dict.fromkeys(_every_layer(p) for p in self.shapes if p not in held))
        if missing and not self.found.errors:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            self.add("PF0603", f"{self.format}: no tensor is named for `{missing[0]}`{more}", self.section.span,
                     help=f"{missing[0]}: their.name")  # fmt: skip
        self.found.raise_errors()
        return WeightsMap(
            self.format,
            values.get("architecture"),
            values.get("config") or {},
            tuple(tensors.values()),
            tuple(values.get("ignore") or ()),
            self.spec,
        )

    def add(
        self, code: str, message: str, span: Span, notes: list[Note] | None = None, help: str | None = None
    ) -> None:
        self.found.add(Diagnostic(code, message, span, notes=tuple(notes or ()), help=help))

    def entry(self, path: str, text: str, span: Span) -> list[Tensor]:
        m = _ENTRY.fullmatch(text.strip())
        if not m:
            self.add(
                "PF0601",
                "expected a tensor's name, or a name and a layout",
                span,
                help='model.layers.*.mlp.up_proj.weight >> "ff d -> d ff"',
            )
            return []
        name, pattern = m["name"], m["pattern"]
        if path.count("[*]") != name.count("*"):
            self.add("PF0601", f"`{path}` has {path.count('[*]')} `[*]`, `{name}` has {name.count('*')} `*`", span)
            return []
        shape_of = re.compile(re.escape(path).replace(re.escape("[*]"), r"\[(\d+)\]"))
        found = []
        for parameter, shape in self.shapes.items():
            numbers = shape_of.fullmatch(parameter)
            if not numbers:
                continue
            theirs = name
            for n in numbers.groups():
                theirs = theirs.replace("*", n, 1)
            found.append(Tensor(theirs, parameter, shape, pattern, self.sizes, span))
        if not found:
            known = {_every_layer(p) for p in self.shapes}
            self.add("PF0604", f"no parameter is called `{path}`", span, help=did_you_mean(path, known))
        elif pattern is not None:
            self.layout(found[0], span)
        return found if not self.found.errors else []

    def layout(self, t: Tensor, span: Span) -> None:
        """A layout must lead from the parameter's shape to theirs and back again."""
        try:
            probe = np.broadcast_to(np.zeros((), np.int8), t.shape)
            back = t.to_ours(np.broadcast_to(np.zeros((), np.int8), t.to_theirs(probe).shape))
            if back.shape != t.shape:
                self.add("PF0605", f'"{t.pattern}" makes {list(back.shape)}, `{t.parameter}` is {list(t.shape)}', span)
        except (EinopsError, ValueError) as e:
            reason = str(e).strip().splitlines()[-1]
            self.add("PF0605", f'"{t.pattern}" does not fit `{t.parameter}` {list(t.shape)}: {reason}', span)
