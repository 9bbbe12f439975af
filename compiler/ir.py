"""The typed graph. SSA: every `Value` is made once, by a `Node` or as an input of its `Graph`.

Values and nodes are compared by identity; `planform.compiler.text` prints a graph and reads it back, and
two graphs are equal when their texts are. Passes never change a graph: they make a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .types import Dim, TensorType

if TYPE_CHECKING:
    from .ops.contract import Op


@dataclass(frozen=True)
class Origin:
    """Where a value comes from: the path of blocks and, if known, `file:line:column` of the spec."""

    path: str = ""
    place: str | None = None

    @property
    def primed(self) -> Origin:
        """That of a value which a pass puts in the place of one from here and which is another (some times as large):
        the two aren't to be compared."""
        return replace(self, path=f"{self.path}{PRIME}")

    @property
    def plain(self) -> Origin:
        """Of the value in whose place it stands."""
        return replace(self, path=self.path.removesuffix(PRIME))


PRIME = "'"


@dataclass(frozen=True)
class Init:
    """How a parameter starts: `normal(0.02)`, `fan_in(1)`, `zeros`; see `compiler/init.py`."""

    name: str
    arguments: tuple[float, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(repr, self.arguments))})" if self.arguments else self.name


@dataclass(eq=False)
class Value:
    """A tensor in a graph; `name` is unique in its graph."""

    name: str
    type: TensorType
    origin: Origin = field(default_factory=Origin)

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"


@dataclass(eq=False, repr=False)
class Input(Value):
    """Data from outside. `default` says what stands in where the caller gives nothing:
    `iota` (0, 1, 2 .. along the stream), `zeros`, `full` (the size of the stream dim), or a draw of
    random numbers (`uniform` in [0, 1), `normal`) keyed by seed, step and `path`; None: it must be given."""

    default: str | None = None
    path: str = ""  # of a draw, with slices as parameters have them
    stacked: int = 0


@dataclass(eq=False, repr=False)
class Weight(Value):
    """A tensor that a model is made of. `path` is its name to people, selectors and checkpoints; a stack of equal
    layers has a slice in it for each leading `repeat` dim: `lm.layer[0:26:2].attend.query.weight`. A `frozen` one
    belongs to another spec, whose name leads its path, and comes with a checkpoint of that."""

    path: str = ""
    init: Init = field(default_factory=lambda: Init("zeros"))
    stacked: int = 0  # how many leading dims are stacks
    frozen: bool = False


@dataclass(eq=False, repr=False)
class Parameter(Weight):
    """A weight that is trained."""


@dataclass(eq=False, repr=False)
class Buffer(Weight):
    """A weight that no gradient trains (statistics, vectors of power iterations): a training graph takes it and
    returns its successor under the same path, elsewhere it is a constant."""


@dataclass(eq=False, repr=False)
class State(Value):
    """Streaming state: a graph in step form takes it and returns its successor under the same path."""

    path: str = ""
    stacked: int = 0


@dataclass(eq=False, repr=False)
class Argument(Value):
    """What the region of a repetition receives: a carry (unless that is a `Buffer`), one slice of a stack, or a loop
    invariant."""


@dataclass(eq=False)
class Node:
    op: Op
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    origin: Origin = field(default_factory=Origin)
    region: Graph | None = None

    @property
    def output(self) -> Value:
        return self.outputs[0]


@dataclass(eq=False)
class Graph:
    """Nodes in an order that runs. `outputs` maps names to values; the successor of a State or a Buffer is named by
    its path. A region has the same shape; its outputs are named by position."""

    name: str
    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: dict[str, Value]
    stream: str | None = None

    def of_kind(self, kind: type) -> list[Any]:
        return [v for v in self.inputs if isinstance(v, kind)]

    @property
    def weights(self) -> list[Weight]:
        """Parameters and buffers: all that a checkpoint of the model holds."""
        return self.of_kind(Weight)

    @property
    def parameters(self) -> list[Parameter]:
        return self.of_kind(Parameter)

    @property
    def buffers(self) -> list[Buffer]:
        return self.of_kind(Buffer)

    @property
    def states(self) -> list[State]:
        return self.of_kind(State)

    def walk(self) -> Iterator[Node]:
        """All nodes, those of regions after the node that holds them."""
        for node in self.nodes:
            yield node
            if node.region:
                yield from node.region.walk()

    def users(self) -> dict[Value, list[Node]]:
        out: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for v in node.inputs:
                out.setdefault(v, []).append(node)
        return out

    def producers(self) -> dict[Value, Node]:
        return {v: n for n in self.nodes for v in n.outputs}


@dataclass(frozen=True)
class Scope:
    """The path of blocks around what is being built."""

    elements: tuple[str, ...] = ()
    place: str | None = None

    def __truediv__(self, element: str) -> Scope:
        return replace(self, elements=(*self.elements, element))

    @property
    def path(self) -> str:
        return ".".join(self.elements)


class Builder:
    """Makes a graph node by node; types come from the ops' own rules."""

    def __init__(self, name: str, parent: Builder | None = None, stream: str | None = None) -> None:
        self.name, self.parent, self.stream = name, parent, stream
        self.inputs: list[Value] = []
        self.nodes: list[Node] = []
        self.origin = Origin()
        self._names: dict[str, int] = {}

    @staticmethod
    def beside(graph: Graph) -> Builder:
        """A builder of nodes that are to join a graph: the graph's names are taken."""
        b = Builder(graph.name, stream=graph.stream)
        names = [v.name for v in graph.inputs] + [v.name for n in graph.nodes for v in n.outputs]
        b._names = dict.fromkeys(names, 1)
        return b

    def fresh(self, hint: str) -> str:
        """A name not used yet in this graph."""
        n = self._names.get(hint, 0)
        self._names[hint] = n + 1
        if n == 0:
            return hint
        name = f"{hint}_{n + 1}"
        if name in self._names:
            return self.fresh(hint)
        self._names[name] = 1
        return name

    def add(self, value: Value) -> Any:
        """Declares an input value (its name is made unique)."""
        value.name = self.fresh(value.name)
        self.inputs.append(value)
        return value

    def emit(self, op: Op, *inputs: Value, region: Graph | None = None, hint: str | None = None) -> Any:
        """Adds a node; returns its value, or a tuple of them where the op has several results.

        Raises: TypeMismatch where the op's rule refuses the inputs.
        """
        found = op.infer(*(v.type for v in inputs)) if region is None else op.infer_region(region, inputs)  # type: ignore[attr-defined]
        types = (found,) if isinstance(found, TensorType) else tuple(found)
        base = hint or (self.origin.path.rpartition(".")[2].partition("[")[0] or op.name)
        outputs = tuple(Value(self.fresh(base), t, self.origin) for t in types)
        self.nodes.append(Node(op, tuple(inputs), outputs, self.origin, region))
        return outputs[0] if isinstance(found, TensorType) else outputs

    def finish(self, outputs: Mapping[str, Value]) -> Graph:
        return Graph(self.name, tuple(self.inputs), tuple(self.nodes), dict(outputs), self.stream)


def free_values(graph: Graph) -> list[Value]:
    """Values that nodes or outputs of the graph use but that it does not define, in order of first use."""
    defined = set(graph.inputs)
    free: dict[Value, None] = {}
    for node in graph.nodes:
        for v in node.inputs:
            if v not in defined:
                free[v] = None
        defined.update(node.outputs)
    for v in graph.outputs.values():
        if v not in defined:
            free[v] = None
    return list(free)


def substitute(graph: Graph, mapping: Mapping[Value, Value]) -> Graph:
    """The graph with some used values replaced by others."""

    def one(v: Value) -> Value:
        while v in mapping:
            v = mapping[v]
        return v

    nodes = tuple(replace(n, inputs=tuple(one(v) for v in n.inputs)) for n in graph.nodes)
    return replace(graph, nodes=nodes, outputs={k: one(v) for k, v in graph.outputs.items()})


def copy(graph: Graph) -> Graph:
    """A graph of its own values and nodes."""
    mapping: dict[Value, Value] = {v: replace(v) for v in graph.inputs}
    nodes = []
    for n in graph.nodes:
        outputs = tuple(replace(v) for v in n.outputs)
        nodes.append(
            replace(
                n,
                inputs=tuple(mapping[v] for v in n.inputs),
                outputs=outputs,
                region=copy(n.region) if n.region else None,
            )
        )
        mapping.update(zip(n.outputs, outputs))
    return replace(
        graph,
        inputs=tuple(mapping[v] for v in graph.inputs),
        nodes=tuple(nodes),
        outputs={k: mapping[v] for k, v in graph.outputs.items()},
    )


def bind(graph: Graph, env: Mapping[str, Any]) -> Graph:
    """The graph with symbolic sizes replaced (`{"time": 128}`), in types and in attributes."""
    out = copy(graph)

    def visit(g: Graph) -> None:
        for v in g.inputs:
            v.type = v.type.bind(env)
        for n in g.nodes:
            n.op = n.op.bind(env)
            for v in n.outputs:
                v.type = v.type.bind(env)
            if n.region:
                visit(n.region)

    visit(out)
    return out


def verify(graph: Graph, outer: Iterable[Value] = ()) -> None:
    """Checks what every pass must keep: names unique, values defined before use, types as the ops say.

    Raises: AssertionError, which is a fault of the compiler and never of a spec.
    """
    names: set[str] = set()
    defined: set[Value] = set(outer)

    def define(v: Value) -> None:
        assert v.name not in names, f"{graph.name}: %{v.name} is defined twice"
        names.add(v.name)
        defined.add(v)

    for v in graph.inputs:
        define(v)
    for n in graph.nodes:
        for v in n.inputs:
            assert v in defined, f"{graph.name}: {n.op.name} uses %{v.name} before it is defined"
        if n.region:
            verify(n.region)
            found: Any = n.op.infer_region(n.region, n.inputs)  # type: ignore[attr-defined]
        else:
            found = n.op.infer(*(v.type for v in n.inputs))
        types = (found,) if isinstance(found, TensorType) else tuple(found)
        got = tuple(v.type for v in n.outputs)
        assert types == got, f"{graph.name}: {n.op.name} gives {types}, %{n.output.name} is {got}"
        for v in n.outputs:
            define(v)
    for key, v in graph.outputs.items():
        assert v in defined, f"{graph.name}: output {key} is undefined"


def stacked_dim(count: int) -> Dim:
    """The leading dim of a stack of `count` equal layers."""
    return Dim(None, count)


def rewrite(graph: Graph, visit: Callable[[Node, Builder, Sequence[Value]], Sequence[Value] | None]) -> Graph:
    """A new graph: `visit(node, builder, inputs)` may emit others nodes in its place and return their
    values; None keeps the node. Regions are rewritten first, by the same function."""
    b = Builder(graph.name, stream=graph.stream)
    mapping: dict[Value, Value] = {v: v for v in graph.inputs}
    b.inputs = list(graph.inputs)
    for v in graph.inputs:
        b._names[v.name] = 1
    for n in graph.nodes:
        for v in n.outputs:
            b._names.setdefault(v.name, 1)
    for n in graph.nodes:
        region = rewrite(n.region, visit) if n.region else None
        inputs = [mapping[v] for v in n.inputs]
        kept = replace(n, inputs=tuple(inputs), region=region)
        b.origin = n.origin
        new = visit(kept, b, inputs)
        if new is None:
            b.nodes.append(kept)
            mapping.update(zip(n.outputs, n.outputs))
        else:
            mapping.update(zip(n.outputs, new))
    return replace(graph, nodes=tuple(b.nodes), outputs={k: mapping[v] for k, v in graph.outputs.items()})
