"""The three executions behind one face, for `verify`: whole sequences, streams, and every value on the way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from planform.backends import reference
from planform.compiler.ir import Graph
from planform.compiler.parameters import gather, scatter

from .errors import UserError
from .exporting import step_graph
from .watch import Key, Watched, Watcher, expose, keys

Arrays = dict[str, np.ndarray]
Values = dict[Key, np.ndarray]


class Stream(ABC):
    """A batch of streams. `watch` gives the values of what would be the next step, and leaves the state alone."""

    @abstractmethod
    def step(self, inputs: Mapping[str, Any], count: np.ndarray) -> Arrays:
        """Outputs for a chunk [batch, width, ..] of which `count` entries of each row are valid."""

    @abstractmethod
    def watch(self, inputs: Mapping[str, Any], count: np.ndarray) -> Values: ...


class Engine(ABC):
    """An execution; `name` is what people call it."""

    name: str

    @abstractmethod
    def whole(self, graph: Graph, inputs: Mapping[str, Any]) -> Arrays:
        """Outputs of a whole-sequence graph."""

    @abstractmethod
    def watch_whole(self, graph: Graph, inputs: Mapping[str, Any]) -> Values: ...

    @abstractmethod
    def stream(self, graph: Graph, batch: int, capacity: int) -> Stream:
        """New streams of a graph in step form."""


def engine(name: str, weights: Mapping[str, np.ndarray]) -> Engine:
    """The execution of that name. Raises: UserError for an unknown one."""
    known = {"reference": Reference, "xla": Xla, "onnx": Onnx}
    if name not in known:
        raise UserError(f"there is no backend `{name}`", help="there are " + ", ".join(known))
    found: Engine = known[name](weights)  # type: ignore[abstract]
    return found


# -- reference ---------------------------------------------------------------------------------------------------


class Reference(Engine):
    name = "reference"

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self.weights = weights

    def whole(self, graph: Graph, inputs: Mapping[str, Any]) -> Arrays:
        return reference.run(graph, self.weights, inputs)

    def watch_whole(self, graph: Graph, inputs: Mapping[str, Any]) -> Values:
        watcher = Watcher(graph)
        reference.run(graph, self.weights, inputs, watch=watcher)
        return {w.key: w.array for w in watcher.found}

    def stream(self, graph: Graph, batch: int, capacity: int) -> ReferenceStream:
        return ReferenceStream(graph, self.weights, batch, capacity)


class ReferenceStream(Stream):
    def __init__(self, graph: Graph, weights: Mapping[str, np.ndarray], batch: int, capacity: int) -> None:
        self.graph, self.weights = graph, weights
        self.states = reference.zeros(graph, {"batch": batch, "capacity": capacity})

    def step(self, inputs: Mapping[str, Any], count: np.ndarray) -> Arrays:
        found = reference.run(self.graph, self.weights, {**inputs, "count": count}, self.states)
        self.states = {k: found.pop(k) for k in self.states}
        return found

    def watched(self, inputs: Mapping[str, Any], count: np.ndarray) -> list[Watched]:
        """The values of the next step in the order in which they are made."""
        watcher = Watcher(self.graph)
        reference.run(self.graph, self.weights, {**inputs, "count": count}, self.states, watch=watcher)
        return watcher.found

    def watch(self, inputs: Mapping[str, Any], count: np.ndarray) -> Values:
        return {w.key: w.array for w in self.watched(inputs, count)}


# -- XLA ---------------------------------------------------------------------------------------------------------


class Xla(Engine):
    name = "xla"

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        from planform.backends import xla

        self.weights, self.policy = weights, xla.Policy()

    def program(self, graph: Graph) -> tuple[Any, Any]:
        """The compiled graph and its parameters."""
        import jax

        from planform.backends import xla

        params = xla.from_logical(lambda name: self.weights[name], graph, self.policy)
        f = xla.lower(graph, self.policy)

        def exact(*arguments: Any) -> Any:  # accelerators round matrix products to fewer bits unless told otherwise
            with jax.default_matmul_precision("highest"):
                return f(*arguments)

        return jax.jit(exact), params

    def whole(self, graph: Graph, inputs: Mapping[str, Any]) -> Arrays:
        run, params = self.program(graph)
        found = {k: np.asarray(v) for k, v in run(params, dict(inputs)).items()}
        logical = scatter(found)  # buffers come out as they are stored
        return {k: found[k] if k in found else gather(k, logical.__getitem__) for k in graph.outputs}

    def watch_whole(self, graph: Graph, inputs: Mapping[str, Any]) -> Values:
        shown = expose(graph)
        return shown.read(self.whole(shown.graph, inputs))

    def stream(self, graph: Graph, batch: int, capacity: int) -> Stream:
        return XlaStream(self, graph, batch, capacity)


class XlaStream(Stream):
    def __init__(self, engine: Xla, graph: Graph, batch: int, capacity: int) -> None:
        from planform.backends import xla

        self.engine, self.graph = engine, graph
        self.run, self.params = engine.program(graph)
        self.states = xla.initial_states(graph, engine.policy, {"batch": batch, "capacity": capacity})

    def step(self, inputs: Mapping[str, Any], count: np.ndarray) -> Arrays:
        found = self.run(self.params, {**inputs, "count": count}, self.states)
        self.states = {k: found[k] for k in self.states}
        return {k: np.asarray(v) for k, v in found.items() if k not in self.states}

    def watch(self, inputs: Mapping[str, Any], count: np.ndarray) -> Values:
        shown = expose(self.graph)
        run, params = self.engine.program(shown.graph)
        return shown.read(run(params, {**inputs, "count": count}, self.states))


# -- ONNX --------------------------------------------------------------------------------------------------------


class Onnx(Engine):
    name = "onnx"

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self.weights = weights

    def lower(self, graph: Graph) -> Any:
        from planform.backends import onnx

        return onnx.lower(graph, lambda name: np.asarray(self.weights[name], np.float32))

    def whole(self, graph: Graph, inputs: Mapping[str, Any]) -> Arrays:
        from planform.backends import onnx

        return onnx.run(self.lower(graph), complete(graph, inputs))

    def watch_whole(self, graph: Graph, inputs: Mapping[str, Any]) -> Values:
        from planform.backends import onnx

        lowered = self.lower(graph)
        return named(graph, lowered.names, onnx.intermediates(lowered, complete(graph, inputs)))

    def stream(self, graph: Graph, batch: int, capacity: int) -> Stream:
        lowered = self.lower(graph)
        return OnnxStream(lowered, graph, lowered.names, batch, capacity)


class Artefact(Engine):
    """An exported model in its folder, whatever its outputs are computed for: all entries or the last."""

    name = "artefact"

    def __init__(self, graph: Graph, weights: Mapping[str, np.ndarray], folder: Path) -> None:
        self.graph, self.folder, self.onnx = graph, folder, Onnx(weights)

    def whole(self, graph: Graph, inputs: Mapping[str, Any]) -> Arrays:
        raise NotImplementedError("an artefact in step form runs streams")

    def watch_whole(self, graph: Graph, inputs: Mapping[str, Any]) -> Values:
        raise NotImplementedError("an artefact in step form runs streams")

    def stream(self, graph: Graph, batch: int, capacity: int) -> Stream:
        # The names in the file are those that this graph gets, exported the same way.
        exported, _ = step_graph(self.graph)
        return OnnxStream(self.folder, exported, self.onnx.lower(exported).names, batch, capacity)


class OnnxStream(Stream):
    def __init__(self, source: Any, graph: Graph, names: Mapping[Any, str], batch: int, capacity: int) -> None:
        from planform.backends import onnx

        self.source, self.graph, self.names = source, graph, names
        self.session = onnx.Session(source)
        try:
            self.session.reset(batch, capacity)
        except ValueError as error:
            raise UserError(f"the model can't run {capacity} entries: {error}") from error

    def step(self, inputs: Mapping[str, Any], count: np.ndarray) -> Arrays:
        found: Arrays = self.session.step(inputs, count)
        return {k: np.array(v) for k, v in found.items()}

    def watch(self, inputs: Mapping[str, Any], count: np.ndarray) -> Values:
        from planform.backends import onnx

        feeds = self.session.feeds(inputs, count)
        return named(self.graph, self.names, onnx.intermediates(self.source, feeds))


def complete(graph: Graph, inputs: Mapping[str, Any]) -> Arrays:
    """The inputs with the defaults of those that aren't given: a model file has none."""
    from planform.compiler.ir import Input

    env = reference.sizes_of(graph, inputs)
    return {v.name: inputs[v.name] if v.name in inputs else reference.default(v, env, graph.stream)
            for v in graph.of_kind(Input)}  # fmt: skip


def named(graph: Graph, names: Mapping[Any, str], arrays: Mapping[str, np.ndarray]) -> Values:
    """The values that a model file computes, by key."""
    known = keys(graph)
    found: Values = {}
    for (v, index), name in names.items():
        if v in known and name in arrays:
            found[known[v][0]._replace(runs=tuple(index))] = arrays[name]
    return found
