"""The interpreter. It knows nothing of any op: every meaning is `Op.reference`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from planform.compiler.ir import Buffer, Graph, Input, Node, Parameter, State, Value
from planform.compiler.ops.contract import At
from planform.compiler.ops.control import Repeat
from planform.compiler.parameters import gather
from planform.compiler.size import Polynomial, evaluate
from planform.compiler.types import TensorType

Watch = Callable[[Value, tuple[int, ...], np.ndarray], None]
"""Called with every value made: the value, the indices of the repetitions around it, the array."""


def sizes_of(graph: Graph, arrays: Mapping[str, Any]) -> dict[str, int]:
    """What the symbols of a graph stand for, read off the shapes of its inputs.

    Raises: ValueError where two inputs disagree or a shape doesn't fit.
    """
    env: dict[str, int] = {}
    for v in graph.inputs:
        key = v.path if isinstance(v, (State, Buffer)) else v.name
        if isinstance(v, Parameter) or key not in arrays:
            continue
        shape = np.shape(arrays[key])
        if len(shape) != v.type.rank:
            raise ValueError(f"`{key}` is {v.type}, the array given has shape {list(shape)}")
        for d, n in zip(v.type.dims, shape):
            if isinstance(d.size, Polynomial) and str(d.size).isidentifier():
                if env.setdefault(str(d.size), n) != n:
                    raise ValueError(f"`{d.size}` is {env[str(d.size)]} and {n} in the inputs given")
            elif isinstance(d.size, int) and d.size != n:
                raise ValueError(f"`{key}` is {v.type}, the array given has shape {list(shape)}")
    return env


def default(v: Input, env: Mapping[str, int], stream: str | None) -> np.ndarray:
    """What stands in for an input that isn't given. Raises: ValueError where nothing may."""
    shape = v.type.shape(env)
    if v.default == "zeros":
        return np.zeros(shape, v.type.numpy)
    if v.default == "iota":
        return np.broadcast_to(np.arange(shape[-1], dtype=v.type.numpy), shape)
    if v.default == "full" and stream:
        return np.full(shape, env[stream], v.type.numpy)
    raise ValueError(f"input `{v.name}` is missing")


def _float64(array: Any, t: TensorType, rounded: bool = False) -> np.ndarray:
    if rounded and t.is_float:
        array = np.asarray(array, np.float32)
    return np.asarray(array, np.float64 if t.is_float else t.numpy)


def run(
    graph: Graph,
    parameters: Mapping[str, np.ndarray],
    inputs: Mapping[str, Any],
    states: Mapping[str, np.ndarray] | None = None,
    watch: Watch | None = None,
    rounded: bool = False,
) -> dict[str, np.ndarray]:
    """Runs a graph.

    parameters  by logical name (see compiler/parameters.py), any float dtype
    inputs      by name; those with a default may be left out; buffers by path
    states      by path, of a graph in step form
    rounded     what each op makes is rounded to float32: how far the outputs move is how much float32 can tell of the
                graph, whatever runs it
    Returns outputs by name, floats as float64. Raises: ValueError for inputs that don't fit, KeyError for a
    parameter or state that is missing.
    """
    given = {**inputs, **(states or {})}
    env = sizes_of(graph, given)
    values: dict[Value, np.ndarray] = {}
    for v in graph.inputs:
        if isinstance(v, Parameter):
            array = gather(v.path, lambda name: np.asarray(parameters[name], np.float64))
        elif isinstance(v, (State, Buffer)):
            array = given[v.path]
        elif isinstance(v, Input) and v.name not in given:
            array = default(v, env, graph.stream)
        else:
            array = given[v.name]
        array = _float64(array, v.type)
        if array.shape != v.type.shape(env):
            raise ValueError(f"`{v.name}` is {v.type}, the array given has shape {list(array.shape)}")
        values[v] = array
    _run_nodes(graph.nodes, values, env, watch, (), rounded)
    return {name: values[v] for name, v in graph.outputs.items()}


def _run_nodes(
    nodes: Sequence[Node],
    values: dict[Value, np.ndarray],
    env: Mapping[str, int],
    watch: Watch | None,
    index: tuple[int, ...],
    rounded: bool,
) -> None:
    for node in nodes:
        arrays = [values[v] for v in node.inputs]
        if isinstance(node.op, Repeat) and node.region:
            results = _repeat(node.op, node.region, arrays, env, watch, index, rounded)
        else:
            at = At(tuple(v.type.bind(env) for v in node.inputs), tuple(v.type.bind(env) for v in node.outputs))
            found = node.op.bind(env).reference(at, *arrays)
            results = list(found) if isinstance(found, tuple) else [found]
        for v, array in zip(node.outputs, results, strict=True):
            values[v] = _float64(array, v.type, rounded)
            want = tuple(evaluate(s, env) for s in v.type.sizes)
            if values[v].shape != want:
                raise AssertionError(f"{node.op.name} made {values[v].shape}, its rule says {want}")
            if watch:
                watch(v, index, values[v])


def _repeat(
    op: Repeat,
    region: Graph,
    arrays: list[np.ndarray],
    env: Mapping[str, int],
    watch: Watch | None,
    index: tuple[int, ...],
    rounded: bool,
) -> list[np.ndarray]:
    carries = arrays[: op.carries]
    stacks, invariants = arrays[op.carries : op.carries + op.stacks], arrays[op.carries + op.stacks :]
    made: list[list[np.ndarray]] = []
    for i in op.order():
        values = dict(zip(region.inputs, [*carries, *(s[i] for s in stacks), *invariants], strict=True))
        _run_nodes(region.nodes, values, env, watch, (*index, i), rounded)
        outs = [values[v] for v in region.outputs.values()]
        carries = outs[: op.carries]
        made.append(outs[op.carries :])
    return [*carries, *(np.stack(column) for column in zip(*op.in_order(made)))]


def zeros(graph: Graph, env: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The states of a fresh stream, e.g. env = {"batch": 2, "capacity": 64}."""
    return {s.path: np.zeros(s.type.shape(env), np.float64 if s.type.is_float else s.type.numpy) for s in graph.states}
