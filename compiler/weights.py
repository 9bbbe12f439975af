"""Other libraries' checkpoints: the `weights` section as a two-way map between parameters and tensors.

`lm.layer[*].feed.glu.gate.weight: model.layers.*.mlp.gate_proj.weight >> "ff d -> d ff"` says where a logical
parameter lives over there and how its layout turns into ours; `name[0]` is one entry of a tensor's first dim, `name[*]`
that of a layer; `*+1` counts from one on where we count from zero. Read backwards, it writes their files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from einops import EinopsError, rearrange

from planform.spec import Diagnostic, Diagnostics, Note, Section, Span, Spec, SpecError, did_you_mean, dim_values

from .configuration import Configuration
from .elaborate import elaborate
from .ir import Graph
from .parameters import layers, stack_shape

_ENTRY = re.compile(r'(?P<name>[^\s>]+)\s*(?:>>\s*"(?P<pattern>[^"]*)")?')
_STAR = re.compile(r"\*(?:\+(\d{1,4}))?")
_INDEXED = re.compile(r"(?P<name>.+)\[(?P<index>\d{1,9})\]")


@dataclass(frozen=True)
class Part:
    """A logical parameter in a tensor of theirs, and the way from their layout to ours.

    index  which entry of the tensor's first dim it is; None where it is all of the tensor
    """

    parameter: str
    shape: tuple[int, ...]  # ours
    index: int | None
    pattern: str | None
    sizes: Mapping[str, int]
    span: Span

    @property
    def their_shape(self) -> tuple[int, ...]:
        return self.to_theirs(_shaped(self.shape)).shape

    def to_ours(self, array: np.ndarray) -> np.ndarray:
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
class Tensor:
    """One tensor of theirs and what it holds: one parameter, or one in each entry of its first dim, in order."""

    name: str
    parts: tuple[Part, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        each = self.parts[0].their_shape
        return each if self.parts[0].index is None else (len(self.parts), *each)

    def to_ours(self, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Each parameter with its values. Raises: ValueError where the array has another shape than it should."""
        if tuple(array.shape) != self.shape:
            raise ValueError(f"`{self.name}` has shape {list(array.shape)}, expected {list(self.shape)}")
        for p in self.parts:
            yield p.parameter, p.to_ours(array if p.index is None else array[p.index])

    def to_theirs(self, get: Callable[[str], np.ndarray]) -> np.ndarray:
        """The tensor, made of the parameters that `get` gives."""
        arrays = [p.to_theirs(np.asarray(get(p.parameter))) for p in self.parts]
        return arrays[0] if self.parts[0].index is None else np.stack(arrays)


@dataclass(frozen=True)
class WeightsMap:
    """A checked bijection between the parameters of a spec's graphs and another library's tensors."""

    format: str
    architecture: str | None
    config: Configuration
    tensors: tuple[Tensor, ...]
    ignore: tuple[str, ...]
    spec: Spec

    def by_name(self) -> dict[str, Tensor]:
        return {t.name: t for t in self.tensors}


def weights_map(spec: Spec, format: str, graphs: list[Graph] | None = None) -> WeightsMap:
    """The checked map of one format: every parameter of the graphs stands in exactly one tensor or part of one, every
    part of a tensor holds one, and every pattern turns into the parameter's shape and back.

    graphs  of the spec, if they are there already
    Raises: SpecError (PF061x) at the entry that is wrong, or naming the parameters that are left out.
    """
    section = spec.weights
    if section is None or format not in section.values:
        have = ", ".join(section.values) if section else "none"
        raise SpecError(
            Diagnostic(
                "PF0610",
                f"`{spec.name}` has no weights map for {format}; it has {have}",
                section.span if section else Span(spec.source, 0, 1),
            )
        )
    if graphs is None:
        graphs = [elaborate(spec, g) for g in spec.graphs]
    return _Reader(spec, section, format, graphs).read()


def _every_layer(path: str) -> str:
    """`lm.layer[3].norm` -> `lm.layer[*].norm`."""
    return re.sub(r"\[\d+\]", "[*]", path)


def _shaped(shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(np.zeros((), np.int8), shape)  # a broadcast zero has the shape without the memory


class _Reader:
    def __init__(self, spec: Spec, section: Section, format: str, graphs: list[Graph]) -> None:
        self.spec, self.section, self.format = spec, section, format
        self.found = Diagnostics()
        self.sizes = {k: int(v) for k, v in dim_values(spec.dims, self.found).items() if float(v).is_integer()}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for graph in graphs:
            for p in graph.weights:
                shape = p.type.shape({})[len(stack_shape(p.path)) :]
                self.shapes.update(dict.fromkeys(layers(p.path), shape))

    def read(self) -> WeightsMap:
        values = self.section.values[self.format]
        held: dict[str, Span] = {}  # parameter -> where it is mapped
        filled: dict[str, Span] = {}  # tensor, or entry of one -> where it is
        tensors: dict[str, list[Part]] = {}
        for path, text in values["tensors"].items():
            span = self.section.spans.get(f"{self.format}.tensors.{path}", self.section.span)
            for name, part in self.entry(path, text, span):
                place = name if part.index is None else f"{name}[{part.index}]"
                for key, seen in ((place, filled), (part.parameter, held)):
                    if key in seen:
                        self.add("PF0612", f"`{key}` is mapped twice", span, [Note("first here", seen[key])])
                    seen.setdefault(key, span)
                tensors.setdefault(name, []).append(part)
        whole = [self.tensor(name, parts, tensors) for name, parts in tensors.items()]
        missing = list(dict.fromkeys(_every_layer(p) for p in self.shapes if p not in held))
        if missing and not self.found.errors:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            self.add("PF0613", f"{self.format}: no tensor is named for `{missing[0]}`{more}", self.section.span,
                     help=f"{missing[0]}: their.name")  # fmt: skip
        self.found.raise_errors()
        return WeightsMap(
            self.format,
            values.get("architecture"),
            Configuration(values.get("config") or {}, self.spec),
            tuple(whole),
            tuple(values.get("ignore") or ()),
            self.spec,
        )

    def add(
        self, code: str, message: str, span: Span, notes: list[Note] | None = None, help: str | None = None
    ) -> None:
        self.found.add(Diagnostic(code, message, span, notes=tuple(notes or ()), help=help))

    def entry(self, path: str, text: str, span: Span) -> list[tuple[str, Part]]:
        """What an entry of the section says of each layer: (the tensor's name, what it holds)."""
        m = _ENTRY.fullmatch(text.strip())
        if not m:
            self.add(
                "PF0611",
                "expected a tensor's name, or a name and a layout",
                span,
                help='model.layers.*.mlp.up_proj.weight >> "ff d -> d ff"',
            )
            return []
        name, pattern = m["name"], m["pattern"]
        if path.count("[*]") != name.count("*"):
            self.add("PF0611", f"`{path}` has {path.count('[*]')} `[*]`, `{name}` has {name.count('*')} `*`", span)
            return []
        shape_of = re.compile(re.escape(path).replace(re.escape("[*]"), r"\[(\d+)\]"))
        found = []
        for parameter, shape in self.shapes.items():
            numbers = shape_of.fullmatch(parameter)
            if not numbers:
                continue
            theirs = name
            for n in numbers.groups():
                theirs = _STAR.sub(lambda m, n=n: str(int(n) + int(m[1] or 0)), theirs, count=1)  # type: ignore[misc]
            indexed = _INDEXED.fullmatch(theirs)
            theirs, index = (indexed["name"], int(indexed["index"])) if indexed else (theirs, None)
            found.append((theirs, Part(parameter, shape, index, pattern, self.sizes, span)))
        if not found:
            known = {_every_layer(p) for p in self.shapes}
            self.add("PF0614", f"no parameter is called `{path}`", span, help=did_you_mean(path, known))
        elif pattern is not None:
            self.layout(found[0][1])
        return found if not self.found.errors else []

    def layout(self, part: Part) -> None:
        """A layout must lead from the parameter's shape to theirs and back again."""
        try:
            back = part.to_ours(_shaped(part.their_shape)).shape
            if back != part.shape:
                self.add(
                    "PF0615", f'"{part.pattern}" makes {list(back)}, `{part.parameter}` is {list(part.shape)}',
                    part.span,
                )  # fmt: skip
        except (EinopsError, ValueError) as e:
            reason = str(e).strip().splitlines()[-1].strip()
            self.add(
                "PF0615", f'"{part.pattern}" does not fit `{part.parameter}` {list(part.shape)}: {reason}', part.span
            )

    def tensor(self, name: str, parts: list[Part], others: Container[str]) -> Tensor:
        """A tensor is mapped whole, or in entries of its first dim that are all there and alike."""
        if above := next((a for a in accumulate(name.split("/")[:-1], "{}/{}".format) if a in others), None):
            self.add("PF0611", f"`{name}` can't lie in `{above}`, which is a tensor", parts[0].span)
        entries = {p.index: p for p in parts if p.index is not None}
        if self.found.errors or not entries:
            return Tensor(name, tuple(parts))
        first = parts[0]
        if whole := next((p for p in parts if p.index is None), None):
            self.add("PF0616", f"`{name}` is mapped whole and entry by entry", whole.span,
                     [Note("an entry here", next(iter(entries.values())).span)])  # fmt: skip
        elif (lost := next((i for i in range(max(entries)) if i not in entries), None)) is not None:
            self.add("PF0616", f"nothing is mapped to `{name}[{lost}]`", entries[max(entries)].span,
                     help="the entries of a tensor count from 0, and each holds a parameter")  # fmt: skip
        elif other := next((p for p in parts if p.their_shape != first.their_shape), None):
            self.add(
                "PF0616", f"the entries of `{name}` have two shapes: {list(first.their_shape)} and "
                f"{list(other.their_shape)}", other.span, [Note("the other here", first.span)],
            )  # fmt: skip
        return Tensor(name, tuple(entries[i] for i in sorted(entries)))
