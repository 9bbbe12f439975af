"""Random weights and inputs that leave no part of a model idle: caps bend, windows end, documents change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields

import numpy as np

from planform.backends import reference
from planform.compiler.ir import Graph, Init, Input, Node, Parameter, Value
from planform.compiler.parameters import initial, layers
from planform.compiler.size import symbols

Arrays = dict[str, np.ndarray]

REACH = 0.8
"""How far a score or logit gets, as a share of its cap: tanh(0.8) is 17% below 0.8."""


def longest_window(graph: Graph) -> int:
    """The longest window of the graph's ops; 0 where none has one."""
    found = [getattr(n.op, "window", None) for n in graph.walk() if any(f.name == "window" for f in fields(n.op))]
    return max((w for w in found if w), default=0)


def probe_length(graph: Graph) -> int:
    """Entries of a stream that reach over two windows, and 24 where there is none."""
    window = longest_window(graph)
    return 2 * window + window // 2 + 7 if window else 24


def in_two(time: int) -> tuple[int, int]:
    """A prompt's entries in two chunks. The second finds caches filled, and has 16 entries if there are as many: from
    there on a backend may attend in other ways than entry by entry."""
    second = max(time // 3, min(16, time - 1))
    return time - second, second


def probe_inputs(graph: Graph, batch: int, time: int, seed: int, documents: bool) -> Arrays:
    """Inputs of a graph [batch, time, ..], `time` of everything whose size is open: whole numbers within what reads
    them, coordinates in [0, 1] and a little beyond, other floats normal.

    With documents, row 0 is one document that fills it, row 1 has short ones before a long one, the others are
    cut at random.
    """
    rng = np.random.default_rng([seed, 1])
    given_dims = [d for v in graph.of_kind(Input) for d in v.type.dims]
    env = {name: time for d in given_dims for name in symbols(d.size)} | {"batch": batch}
    users = graph.users()
    found: Arrays = {}
    for v in graph.of_kind(Input):
        if v.default not in (None, "normal", "uniform"):
            continue
        shape = v.type.shape(env)
        if v.default == "uniform":
            found[v.name] = rng.random(shape).astype(np.float32)
            continue
        if v.type.is_float and _locates(v, users):
            found[v.name] = rng.uniform(-0.1, 1.1, shape).astype(np.float32)
        elif v.type.is_float:
            found[v.name] = rng.standard_normal(shape).astype(np.float32)
        elif v.type.dtype == "bool":
            found[v.name] = rng.random(shape) < 0.5
        else:
            found[v.name] = rng.integers(0, _bound(v, users), shape).astype(v.type.numpy)
    if documents:
        position, document = _documents(rng, batch, time)
        given = {"position": position, "document": document}
        for v in graph.of_kind(Input):
            if v.name in given and v.default in ("iota", "zeros") and v.type.shape(env) == (batch, time):
                found[v.name] = given[v.name]
    return found


def _locates(v: Value, users: Mapping[Value, list[Node]]) -> bool:
    """Whether an op takes the value for coordinates."""
    return any("coords" in n.op.tensors and n.inputs[n.op.tensors.index("coords")] is v for n in users.get(v, ()))


def _bound(v: Value, users: Mapping[Value, list[Node]]) -> int:
    """How many values a whole-number input may take: the rows of the table that reads it."""
    rows = [n.inputs[1].type.sizes[0] for n in users.get(v, ()) if n.op.name == "embed"]
    known = [r for r in rows if isinstance(r, int)]
    return min(known, default=2)


def _documents(rng: np.random.Generator, batch: int, time: int) -> tuple[np.ndarray, np.ndarray]:
    """(position, document), int32 [batch, time]."""
    starts = rng.random((batch, time)) < 4 / time
    starts[0] = False
    if batch > 1:
        starts[1] = False
        starts[1, [min(3, time - 1), min(5, time - 1)]] = True
    starts[:, 0] = True
    index = np.broadcast_to(np.arange(time), (batch, time))
    first = np.maximum.accumulate(np.where(starts, index, 0), 1)
    return (index - first).astype(np.int32), (np.cumsum(starts, 1) - 1).astype(np.int32)


def probe_parameters(graph: Graph, seed: int = 0) -> Arrays:
    """Random parameters and buffers by logical name, float32.

    What is drawn at the start stays near it (the rates of a descent are small), and matrices that start as zeros are as
    large as others (behind a gate that is shut no mistake would show); other vectors are stirred, and buffers that
    start as ones, which are variances, stay above zero; then what feeds a cap is scaled until the largest score or
    logit on a sample input reaches it.
    """
    rng = np.random.default_rng([seed, 2])
    found: Arrays = {}
    positive = {name for b in graph.buffers if b.init == Init("ones") for name in layers(b.path)}
    for name, array in initial(graph.weights, seed).items():
        if name in positive:
            found[name] = np.exp(rng.standard_normal(array.shape) * 0.3).astype(np.float32)
            continue
        drawn = np.ptp(array) > 0
        size = 0.02 if drawn else 0.3 if array.ndim < 2 else math.prod(array.shape[:-1]) ** -0.5
        found[name] = (array + rng.standard_normal(array.shape) * size).astype(np.float32)
    _reach_caps(graph, found, seed)
    return found


def _reach_caps(graph: Graph, parameters: Arrays, seed: int) -> None:
    window = longest_window(graph)
    inputs = probe_inputs(graph, 1, min(window + 1, 32) if window else 16, seed, False)
    makers, outer = _makers(graph)
    for node in [n for n in graph.walk() if _cap(n)]:
        # In graph order, since what a cap lets through changes what comes after it.
        largest = _largest(graph, node, parameters, inputs)
        source = _weights(node.inputs[0], makers, outer)
        if not source or not largest:
            continue
        factor = float(REACH * (_cap(node) or 0) / largest)
        for name in layers(source.path):
            parameters[name] = (parameters[name] * factor).astype(np.float32)


def _cap(node: Node) -> float | None:
    return getattr(node.op, "softcap", None) or getattr(node.op, "cap", None)


def _largest(graph: Graph, node: Node, parameters: Arrays, inputs: Arrays) -> float:
    """The largest size of what a node caps, over all its runs."""
    seen: dict[tuple[Value, tuple[int, ...]], np.ndarray] = {}
    wanted = set(node.inputs[:2])
    found = 0.0

    def watch(v: Value, index: tuple[int, ...], array: np.ndarray) -> None:
        nonlocal found
        if v in wanted:
            seen[v, index] = array
        if v is node.output:
            x = seen[node.inputs[0], index]
            if getattr(node.op, "softcap", None):
                k = seen[node.inputs[1], index]
                k = np.repeat(k, x.shape[-2] // k.shape[-2], -2)
                x = np.einsum("...thd,...shd->...hts", x, k) * getattr(node.op, "scale", 1.0)
            found = max(found, float(np.abs(x).max()))

    reference.run(graph, parameters, inputs, watch=watch)
    return found


def _makers(graph: Graph) -> tuple[dict[Value, Node], dict[Value, Value]]:
    """Who makes each value, and what a region's argument stands for outside."""
    makers: dict[Value, Node] = {}
    outer: dict[Value, Value] = {}
    for n in graph.walk():
        makers.update((v, n) for v in n.outputs)
        if n.region:
            outer.update(zip(n.region.inputs, n.inputs))
    return makers, outer


def _weights(v: Value, makers: Mapping[Value, Node], outer: Mapping[Value, Value]) -> Parameter | None:
    """The nearest matrix upstream of a value, along first inputs."""
    while v in makers:
        node = makers[v]
        for i in node.inputs[1:]:
            while i in outer:
                i = outer[i]
            if isinstance(i, Parameter) and i.type.rank - i.stacked >= 2:
                return i
        v = node.inputs[0]
    return None
