"""Every value of a graph by a key that means the same on every backend.

A value is known by the path of blocks and the place in the spec that made it, the how-manieth of those it is,
and which layer it belongs to: all of that outlives passes, lowering and small edits of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from planform.compiler.ir import Graph, Node, Origin, Value
from planform.compiler.ops.control import Repeat
from planform.compiler.parameters import layers, stack_shape

Index = tuple[int, ...]


class Key(NamedTuple):
    """path and place of the value's origin, how many like it came before, which run of the repetitions around it."""

    path: str
    place: str | None
    ordinal: int
    runs: Index

    @property
    def logical(self) -> str:
        """The path with the layer's own number: `lm.layer[3].attend` for run 1 of `lm.layer[1:26:2].attend`."""
        shape = stack_shape(self.path)
        if shape and len(shape) == len(self.runs):
            return layers(self.path)[int(np.ravel_multi_index(self.runs, shape))]
        return self.path + "".join(f"[{i}]" for i in self.runs)


@dataclass(frozen=True)
class Watched:
    """One value of one run."""

    key: Key
    op: str
    value: Value
    array: np.ndarray


def keys(graph: Graph) -> dict[Value, tuple[Key, Node]]:
    """The key of what each node makes, its runs left empty; successors of states have none."""
    found: dict[Value, tuple[Key, Node]] = {}
    counts: dict[Origin, int] = {}
    for node in graph.walk():
        if isinstance(node.op, Repeat) or not node.origin.path:
            continue
        origin = node.origin
        n = counts.get(origin.plain, 0)
        counts[origin.plain] = n + 1
        found[node.output] = (Key(origin.path, origin.place, n, ()), node)
    return found


class Watcher:
    """Collects the values of one run of the reference, in the order in which they are made."""

    def __init__(self, graph: Graph) -> None:
        self._keys = keys(graph)
        self.found: list[Watched] = []

    def __call__(self, v: Value, index: Index, array: np.ndarray) -> None:
        if v in self._keys and array.ndim:
            key, node = self._keys[v]
            self.found.append(Watched(key._replace(runs=index), node.op.name, v, array))


@dataclass(frozen=True)
class Exposed:
    """A graph that gives all its values as outputs, and how to read them back."""

    graph: Graph
    names: Mapping[str, tuple[Key, int]]  # output -> (key, how many leading dims are layers)

    def read(self, outputs: Mapping[str, Any]) -> dict[Key, np.ndarray]:
        found: dict[Key, np.ndarray] = {}
        for name, (key, stacked) in self.names.items():
            array = np.asarray(outputs[name])
            for index in np.ndindex(array.shape[:stacked]):
                found[key._replace(runs=index)] = array[index]
        return found


def expose(graph: Graph) -> Exposed:
    """The same graph with every value that has a key as an output; those of repetitions come stacked."""
    known = keys(graph)
    names: dict[str, tuple[Key, int]] = {}
    outputs = dict(graph.outputs)
    nodes, shown = _expose(graph, lambda v: v in known and bool(v.type.rank))
    for i, (original, v, depth) in enumerate(shown):
        name = f"watched.{i}"
        outputs[name] = v
        names[name] = (known[original][0], depth)
    return Exposed(replace(graph, nodes=tuple(nodes), outputs=outputs), names)


def _expose(graph: Graph, wanted: Callable[[Value], bool]) -> tuple[list[Node], list[tuple[Value, Value, int]]]:
    """The nodes, and (the value watched, the value that shows it here, layers stacked on it)."""
    nodes: list[Node] = []
    shown: list[tuple[Value, Value, int]] = []
    for node in graph.nodes:
        if not (isinstance(node.op, Repeat) and node.region):
            nodes.append(node)
            shown += [(v, v, 0) for v in node.outputs[:1] if wanted(v)]
            continue
        inner, inside = _expose(node.region, wanted)
        results = [*node.region.outputs.values(), *(v for _, v, _ in inside)]
        region = replace(node.region, nodes=tuple(inner), outputs={str(i): v for i, v in enumerate(results)})
        types = node.op.infer_region(region, node.inputs)[len(node.outputs) :]
        stacked = [
            Value(f"watched.{v.name}.{len(shown) + i}", t, v.origin)
            for i, ((v, _, _), t) in enumerate(zip(inside, types))
        ]
        nodes.append(replace(node, region=region, outputs=(*node.outputs, *stacked)))
        shown += [(v, s, depth + 1) for (v, _, depth), s in zip(inside, stacked)]
    return nodes, shown


def first_difference(
    truth: Iterable[Watched], suspect: Mapping[Key, np.ndarray], tolerance: float, valid: Callable[[Watched], Any]
) -> Iterator[tuple[Watched, float]]:
    """The values that differ by more than the tolerance, in the order of the truth, with their relative error.

    valid(watched) chooses the entries that count (padding doesn't): an index for the arrays. A value that the
    suspect doesn't have, or has in another shape (dims merged by a backend), is compared entry by entry where the
    number of entries agrees and passed over where not.
    """
    for w in truth:
        other = suspect.get(w.key)
        if other is None or other.size != w.array.size:
            continue
        error = relative(np.reshape(other, w.array.shape), w.array, valid(w))
        if not error <= tolerance:
            yield w, error


def relative(a: np.ndarray, b: np.ndarray, valid: Any = ...) -> float:
    """max |a - b| / max |b|, inf where a isn't finite; 0 for no entries."""
    with np.errstate(invalid="ignore"):  # padding may hold anything
        a, b = np.asarray(a, np.float64)[valid], np.asarray(b, np.float64)[valid]
    if not a.size:
        return 0.0
    if not np.isfinite(a).all():
        return float("inf")
    scale = np.abs(b).max()
    error = np.abs(a - b).max()
    return float(error / scale) if scale else float(error and np.inf)
