"""A graph of a spec as a policy, for processes that know no graphs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from planform.backends.onnx import lower
from planform.compiler.ir import Graph, Input, Value, substitute
from planform.compiler.passes.pipeline import optimise
from planform.compiler.passes.unroll import unroll

from .policy import Policy


def policy_of(graph: Graph, action: str) -> Policy:
    """From a graph of one input, [batch, ..], to its output `action`, [batch, actions]."""
    alone = replace(graph, outputs={action: graph.outputs[action]})
    acting = unroll(optimise(alone, "onnx", "training"))  # each weight under its logical name
    model = ir.to_proto(lower(weights_as_inputs(acting), _nothing).model).SerializeToString()
    (seen,) = (v for v in graph.of_kind(Input) if v.default is None)
    shape = seen.type.with_dims(seen.type.dims[1:]).shape({})
    (size,) = graph.outputs[action].type.with_dims(graph.outputs[action].type.dims[-1:]).shape({})
    names = tuple(w.path for w in acting.weights)
    return Policy(model, names, seen.name, shape, seen.type.dtype, action, size)


def weights_as_inputs(graph: Graph) -> Graph:
    """The graph with its weights as plain inputs of the same names."""
    given: dict[Value, Value] = {w: Input(w.path, w.type, w.origin) for w in graph.weights}
    inputs = tuple(given.get(v, v) for v in graph.inputs)
    return replace(substitute(graph, given), inputs=inputs)


def _nothing(name: str) -> np.ndarray:
    raise KeyError(name)
