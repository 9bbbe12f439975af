"""The state of an elaboration: graphs being built, paths, parameters, and how mistakes are told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from planform.spec import (
    Diagnostic,
    Diagnostics,
    GraphDef,
    Note,
    Span,
    Spec,
    SpecError,
    Used,
    ast,
    dim_values,
)

from ..ir import Argument, Buffer, Builder, Init, Input, Origin, Parameter, Value, Weight, stacked_dim
from ..ops.contract import Op, ParameterDecl
from ..ops.sequence import Iota
from ..types import Dim, TensorType, TypeMismatch

_MOST_NODES = 10_000
_DEEPEST = 500


@dataclass(frozen=True)
class Env:
    """What names mean in one body: its own names over those of the spec (or the prelude); and for a block's arguments
    the places where its call gives them."""

    names: dict[str, Any]
    prelude: bool = False
    places: Mapping[str, Span] = field(default_factory=dict)


@dataclass
class Frame:
    """One block being applied: for the uniqueness of sibling names."""

    used: dict[str, int] = field(default_factory=dict)

    def unique(self, name: str) -> str:
        n = self.used.get(name, 0) + 1
        self.used[name] = n
        return name if n == 1 else f"{name}_{n}"


@dataclass
class Region:
    """A graph under construction and, inside a repetition, the weights that its region takes, by path: stacks, and
    buffers that every run hands on, each (outside, inside). `successors` are the buffers' new values."""

    builder: Builder
    count: int = 1
    fits: bool = False  # it is the body of an inner loop
    stacks: dict[str, tuple[Value, Value]] = field(default_factory=dict)
    carries: dict[str, tuple[Value, Value]] = field(default_factory=dict)
    successors: dict[str, Value] = field(default_factory=dict)
    parameters: dict[str, Value] = field(default_factory=dict)  # by path; buffers as the next evaluation takes them
    implicit: dict[tuple[str, tuple[Dim, ...]], Input] = field(default_factory=dict)


def stream_of(g: GraphDef, spec: Spec) -> str | None:
    """The sequence axis of a graph: as written, else `time` where an input has it."""
    if g.stream:
        return g.stream
    names = {e.name for decl in g.inputs.values() for e in decl.dims if isinstance(e, ast.Name)}
    return "time" if "time" in names and "time" not in spec.dims else None


class Context:
    """What a graph under construction knows: its regions, the path of blocks, the place in the spec."""

    def __init__(self, spec: Spec, name: str, stream: str | None, training: bool = False) -> None:
        self.spec, self.stream, self.training = spec, stream, training
        found = Diagnostics()
        self.dims = dim_values(spec.dims, found)
        found.raise_errors()
        self.regions = [Region(Builder(name, stream=stream))]
        self.base = 0  # the region that owns parameters: a graph call inside a repetition shares them
        self.frames = [Frame()]
        self.path: list[str] = []
        self.trail: list[str] = []
        self.emitted = 0
        self.uses: list[Span] = []  # the spec's own calls around what is being applied, outermost first
        self.prelude = next((b.span.source for b in spec.blocks.values() if b.prelude), None)
        self.own: dict[str, Any] = {}  # inputs that expressions of a training program may name
        self.kept: str | None = None  # the dim that reductions of an inner loss keep
        self.others: Mapping[str, Used] = {}  # specs that a training program may call
        self.targets: Mapping[str, str] = {}  # slow copies of graphs that it may call, by name
        self.prefix: list[str] = []  # the name of the used spec or slow copy whose graph is being elaborated
        self.slow = False  # whether that is a slow copy
        self.once: set[str] = set()  # paths of buffers that a loss changes once

    @contextmanager
    def within(self, used: Used) -> Iterator[None]:
        """Works in another spec: names mean what they mean there, its parameters are frozen, and it is at rest
        (no dropout), as it would be for whoever runs it."""
        kept = {k: getattr(self, k) for k in ("spec", "dims", "training", "stream", "own", "others", "prefix")}
        found = Diagnostics()
        self.spec, self.training, self.own, self.others = used.spec, False, {}, {}
        self.dims, self.prefix = dim_values(used.spec.dims, found), [used.name]
        self.__dict__.pop("symbols", None)
        try:
            found.raise_errors()
            yield
        finally:
            self.__dict__.update(kept)
            self.__dict__.pop("symbols", None)

    @contextmanager
    def copied(self, target: str) -> Iterator[None]:
        """Works in a slow copy of this spec's graphs: it is at rest, and its weights are buffers of its own."""
        kept = self.training, self.prefix, self.slow
        self.training, self.prefix, self.slow = False, [target], True
        try:
            yield
        finally:
            self.training, self.prefix, self.slow = kept

    # ---- places and errors ----

    def error(
        self,
        code: str,
        message: str,
        span: Span,
        label: str = "",
        help: str | None = None,
        notes: Sequence[Note] = (),
    ) -> SpecError:
        """A diagnostic with the path of blocks; what goes wrong inside the prelude is shown at the place
        of the spec that used it."""
        facts = list(notes)
        own = self.in_spec(span)
        if own is not span:
            facts.append(Note("from the prelude", span))
            span = own
        if self.trail:
            facts.append(Note("in " + " > ".join(self.trail)))
        return SpecError(Diagnostic(code, message, span, label, tuple(facts), help))

    def in_spec(self, span: Span) -> Span:
        """The place in the spec's own text: for one in the prelude, the call that led there."""
        return self.uses[-1] if span.source is self.prelude and self.uses else span

    def sizes_in(self, expr: ast.Expr) -> list[Note]:
        """Notes on the dims that an expression names: their sizes and where they were set."""
        notes: dict[str, Note] = {}
        for e in expr.walk():
            if isinstance(e, ast.Name) and e.name in self.spec.dims and e.name in self.dims:
                d = self.spec.dims[e.name]
                where = "by --set" if d.origin == "--set" else f"at line {d.span.line}"
                notes[e.name] = Note(f"{e.name} = {self.dims[e.name]}, set {where}")
        return list(notes.values())

    @contextmanager
    def inside(self, element: str | None, trail: str | None = None) -> Iterator[None]:
        """Works under a path element (None: the path stays)."""
        if element is not None:
            self.path.append(element)
        if trail or element:
            self.trail.append(trail or str(element))
        self.frames.append(Frame())
        if len(self.frames) > _DEEPEST:
            raise RecursionError
        try:
            yield
        finally:
            self.frames.pop()
            if trail or element:
                self.trail.pop()
            if element is not None:
                self.path.pop()

    @property
    def builder(self) -> Builder:
        return self.regions[-1].builder

    def emit(self, op: Op, *inputs: Value, span: Span, element: str | None = None) -> Any:
        """Adds a node at the current path. Raises: SpecError where the op refuses its inputs."""
        self.counted(1, span)
        path = ".".join([*self.path, *([element] if element else [])])
        self.builder.origin = Origin(path, str(self.in_spec(span)))
        try:
            return self.builder.emit(op, *inputs)
        except TypeMismatch as e:
            raise self.error(e.code, str(e), span, e.label, e.help) from None

    def counted(self, nodes: int, span: Span) -> None:
        """Raises: SpecError where so many more nodes make a graph that can't be meant."""
        self.emitted += nodes
        if self.emitted > _MOST_NODES:
            raise self.error(
                "PF0330",
                f"this model has over {_MOST_NODES:,} ops",
                span,
                help="write equal layers as `layer ^ n` or `cycle([..], n)`: they stay one region",
            )

    # ---- parameters and implicit inputs ----

    def parameter(self, key: str, decl: ParameterDecl, span: Span, kind: type[Weight] = Parameter) -> Value:
        """The parameter (or buffer) `key` at the current path; inside repetitions, this layer's slice of a stack."""
        path = ".".join([*self.path, key])
        lead = self.stacks()
        if path not in self.regions[0].parameters:
            try:
                t = TensorType(decl.dtype, (*lead, *decl.dims))
            except TypeMismatch as e:
                raise self.error(e.code, f"`{key}`: {e}", span, e.label, e.help) from None
            self.add_weight(kind, self.hint(key), t, path, self.here(path, span), decl.init, len(lead))
        return self.slice_of(path, key, span, changes=kind is Buffer and self.training)

    def add_weight(
        self, kind: type[Weight], name: str, t: TensorType, path: str, origin: Origin, init: Init, stacked: int = 0
    ) -> None:
        """Declares a weight of this model, or as a frozen one of a used spec, or as a buffer of a slow copy."""
        if self.slow:
            kind = Buffer
        made = kind(name, t, origin, path, init, stacked, frozen=bool(self.prefix) and not self.slow)
        self.regions[0].parameters[path] = self.regions[0].builder.add(made)

    def update(self, path: str, value: Value) -> None:
        """The new value of a buffer: what the next evaluation starts from, unless all start from the old one."""
        self.regions[-1].successors[path] = value
        if path not in self.once:
            self.regions[-1].parameters[path] = value

    def random(self, kind: str, t: TensorType, span: Span) -> Value:
        """A draw of the shape of `t`, of its own at every use."""
        path = ".".join([*self.path, kind])
        lead = self.stacks()
        while path in self.regions[0].parameters:  # a graph that is called again shares parameters, not draws
            path += "'"
        whole = TensorType("f32", (*lead, *t.dims))
        draw = Input(self.hint(kind), whole, self.here(path, span), kind, path, len(lead))
        self.regions[0].parameters[path] = self.regions[0].builder.add(draw)
        return self.slice_of(path, kind, span)

    def here(self, path: str, span: Span) -> Origin:
        return Origin(path, str(self.in_spec(span)))

    def stacks(self) -> tuple[Dim, ...]:
        """The leading dims of what the current region owns."""
        return tuple(stacked_dim(r.count) for r in self.regions[self.base + 1 :])

    def slice_of(self, path: str, key: str, span: Span, changes: bool = False) -> Value:
        """What the current region sees of a weight or draw that the graph has as an input. One that a call of a graph
        `changes` is handed on from run to run of the repetitions around the call."""
        value = self.regions[0].parameters[path]
        for i, region in enumerate(self.regions[1:], 1):
            if i <= self.base and not changes:
                continue
            if path not in region.parameters:
                own = i > self.base
                t, kind = (value.type.without([0]), Argument) if own else (value.type, Buffer)
                inner = region.builder.add(kind(self.hint(key), t, self.here(path, span)))
                region.parameters[path] = inner
                (region.stacks if own else region.carries)[path] = value, inner
            value = region.parameters[path]
        return value

    def hint(self, key: str) -> str:
        element = self.path[-1].partition("[")[0] if self.path else ""
        return f"{element}.{key}" if element else key

    def implicit(self, op: Op, inputs: Sequence[Value], span: Span) -> list[Value]:
        """The position, document or random draw that an op reads besides its arguments."""
        reads = op.reads()
        if not reads:
            return []
        x = inputs[0].type
        if reads[0] in ("uniform", "normal"):
            return [self.random(kind, x, span) for kind in reads]
        axis = x.axis(self.stream) if self.stream else None
        if axis is None:
            if "document" in reads:  # masks count from the start of the axis and know one document
                if op.name == "attend":
                    return []
                raise self.error(
                    "PF0331",
                    f"`{op.name}` works along the sequence axis, and {x} has none",
                    span,
                    help="call that axis `time`, or name it with `stream:` in the graph",
                )
            return [self.emit(Iota(x.dims[:-2]), span=span, element="position")]
        if op.name in ("attend", "rope") and axis != x.rank - 3:
            raise self.error(
                "PF0331", f"`{op.name}` needs [.., {self.stream}, heads, head_dim], its input is {x}", span
            )
        root = self.regions[0]
        dims = x.dims[: axis + 1]
        found: list[Value] = []
        for name in reads:
            key = (name, dims)
            if key not in root.implicit:
                default = {"position": "iota", "document": "zeros"}[name]
                root.implicit[key] = root.builder.add(Input(name, TensorType("i32", dims), Origin(name), default))
            found.append(root.implicit[key])
        return found
