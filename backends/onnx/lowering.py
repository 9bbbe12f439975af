"""A graph of the IR as an ONNX model.

Repetitions are unrolled: the runtime has no loop as fast as its flat graphs, and per-layer weights and
states get their logical names. Values are named by their path in the model, so that a divergence found in
the file names a place in the spec.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir

from planform.compiler.analyses.cost import grows
from planform.compiler.ir import Builder, Graph, Input, Node, State, Value, Weight
from planform.compiler.ops.control import Repeat
from planform.compiler.parameters import layers, logical, stack_shape
from planform.compiler.types import TensorType

from .emitter import MICROSOFT, ONNX_DTYPES, CannotLower, Emitter, Made, StateLayout, is_weight, shape_of
from .quantization import PLAIN, Product, Quantization
from .residuals import fuse_residuals
from .rules import EXCLUDED, RULES

OPSET = 24  # newest whose Attention has a kernel; also read by the runtime's browser build
IR_VERSION = 10

Parameters = Callable[[str], np.ndarray]
"""Gives the array of a logical parameter name; called once each time its numbers are written."""

Index = tuple[int, ...]


@dataclass
class Lowered:
    """A model and how it relates to its graph.

    names   the ONNX name of each value of the graph that is computed in the model, by (value, indices of
            the repetitions around it): the very key that the reference's `watch` gets. An array under the
            name has the value's entries in their order, but dims may be merged.
    states  how streaming states are kept
    max_positions  the longest stream; None: no state grows, and a stream may go on without end
    below   what the entries of integer inputs must be below (they look up rows of a table), by name
    products  every product with a weight matrix
    images, kernels  what 8 bits may hold of convolutions: values, and how many numbers which kernel has
    quantization  how those are stored
    """

    model: ir.Model
    names: dict[tuple[Value, Index], str]
    states: list[StateLayout]
    below: dict[str, int]
    max_positions: int | None
    products: list[Product] = field(default_factory=list)
    images: list[ir.Value] = field(default_factory=list)
    kernels: dict[str, int] = field(default_factory=dict)
    quantization: Quantization = PLAIN


@dataclass
class Stack:
    """One operand for each layer of a repetition."""

    items: list[Any]


@dataclass
class _Lowering:
    parameters: Parameters
    m: Emitter
    values: dict[tuple[Value, Index], ir.Value] = field(default_factory=dict)

    def graph_input(self, v: Value) -> Any:
        """An input of the graph as an operand: an ONNX value, or a stack of them."""
        if isinstance(v, Weight):
            shape = [int(s) for s in v.type.sizes[v.stacked :]]  # type: ignore[arg-type]
            return nested(stack_shape(v.path), [self.parameter(n, v.type.dtype, shape) for n in layers(v.path)])
        if isinstance(v, State):
            one = v.type.without(range(v.stacked)) if v.stacked else v.type
            return nested(stack_shape(v.path), [self.state(n, one) for n in layers(v.path)])
        name = self.m.fresh(v.name)
        value = ir.Value(name=name, type=ir.TensorType(ONNX_DTYPES[v.type.dtype]), shape=shape_of(v.type))
        self.note_sizes(value, v.type)
        return value

    def parameter(self, name: str, dtype: str, shape: Sequence[int]) -> ir.Value:
        return self.m.weight(name, ONNX_DTYPES[dtype], shape, lambda: self.parameters(name))

    def state(self, name: str, t: TensorType) -> ir.Value:
        value = ir.Value(name=self.m.fresh(f"past/{name}"), type=ir.TensorType(ONNX_DTYPES[t.dtype]))
        self.m.states.append(StateLayout(name, value, type=t))
        self.note_sizes(value, t)
        return value

    def note_sizes(self, value: ir.Value, t: TensorType) -> None:
        for axis, size in enumerate(t.sizes):
            if str(size).isidentifier():
                self.m.sizes.setdefault(str(size), (value, axis))

    def run(self, nodes: Sequence[Node], env: dict[Value, Any], index: Index) -> None:
        for node in nodes:
            inputs = [env[v] for v in node.inputs]
            if isinstance(node.op, Repeat):
                outputs = self.repeat(node, inputs, index)
            else:
                outputs = self.node(node, [self.solid(x) for x in inputs], index)
            env.update(zip(node.outputs, outputs, strict=True))

    def repeat(self, node: Node, inputs: list[Any], index: Index) -> list[Any]:
        op, region = node.op, node.region
        assert isinstance(op, Repeat) and region is not None
        carries, stacks = inputs[: op.carries], inputs[op.carries : op.carries + op.stacks]
        made: list[list[Any]] = []
        for i in op.order():
            slices = [s.items[i] if isinstance(s, Stack) else self.slice(s, i) for s in stacks]
            env = dict(zip(region.inputs, [*carries, *slices, *inputs[op.carries + op.stacks :]], strict=True))
            self.run(region.nodes, env, (*index, i))
            outs = [env[v] for v in region.outputs.values()]
            carries = outs[: op.carries]
            made.append(outs[op.carries :])
        return [*carries, *(Stack(list(column)) for column in zip(*op.in_order(made), strict=True))]

    def slice(self, x: ir.Value, i: int) -> ir.Value:
        return self.m.op("Gather", x, self.m.constant(i, np.int64), axis=0)

    def solid(self, x: Any) -> ir.Value:
        """A stack as one tensor."""
        if isinstance(x, ir.Value):
            return x
        parts = [self.m.op("Unsqueeze", self.solid(i), self.m.integers(0)) for i in x.items]
        return self.m.op("Concat", *parts, axis=0)

    def node(self, node: Node, inputs: Sequence[ir.Value], index: Index) -> list[Any]:
        name = node.op.name
        place = node.origin.place
        before = len(self.m.nodes)
        with self.m.at(value_name(node.output, index), place):
            if name in RULES:
                found = RULES[name](self.m, node, *inputs)
            elif name in EXCLUDED:
                raise CannotLower(f"`{name}` has no ONNX form ({EXCLUDED[name]}){at(node)}")
            else:
                found = self.decomposed(node, inputs, index)
        outputs = list(found) if isinstance(found, tuple) else [found]
        made = Made(node.op, tuple(inputs))
        fresh = {v for n in self.m.nodes[before:] for v in n.outputs}
        for v, out in zip(node.outputs, outputs, strict=True):
            self.m.made.setdefault(out, made)
            flat = self.m.unsplit(out)
            self.values[v, index] = flat
            if flat in fresh and "/" in str(flat.name):
                flat.name = self.m.fresh(value_name(v, index))
            for x in {out, flat}:
                if x.type is None:
                    x.type = ir.TensorType(ONNX_DTYPES[v.type.dtype])
            if out.shape is None:
                out.shape = shape_of(v.type)
        return outputs

    def decomposed(self, node: Node, inputs: Sequence[ir.Value], index: Index) -> Any:
        """An op without a rule, by its own definition in simpler ops."""
        b = Builder(node.op.name)
        b.origin = replace(node.origin, path=f"{value_name(node.output, index)}/{node.op.name}")
        found = node.op.decompose(b, *node.inputs)
        if found is None:
            raise CannotLower(f"`{node.op.name}` has neither an ONNX rule nor a definition in simpler ops{at(node)}")
        env: dict[Value, Any] = dict(zip(node.inputs, inputs, strict=True))
        self.run(b.nodes, env, ())
        return tuple(env[v] for v in found) if isinstance(found, tuple) else env[found]


def at(node: Node) -> str:
    """Where a node comes from, for messages."""
    parts = [f"in {node.origin.path}" if node.origin.path else "", node.origin.place or ""]
    text = ", ".join(p for p in parts if p)
    return f" ({text})" if text else ""


def nested(shape: Sequence[int], items: list[Any]) -> Any:
    """A flat list as stacks of stacks of the given shape."""
    if not shape:
        return items[0]
    step = len(items) // shape[0]
    return Stack([nested(shape[1:], items[i * step : (i + 1) * step]) for i in range(shape[0])])


def value_name(v: Value, index: Index) -> str:
    """`lm.layer[0:26:2].attend.query` in the fourth run is `lm.layer[6].attend.query`."""
    path = v.origin.path or v.name
    if len(stack_shape(path)) == len(index):
        return logical(path, index)
    return path + "".join(f"[{i}]" for i in index)


def lower(
    graph: Graph,
    parameters: Parameters,
    *,
    max_positions: int = 8192,
    metadata: Mapping[str, str] = MappingProxyType({}),
    quantization: Quantization = PLAIN,
) -> Lowered:
    """The ONNX model of a graph, in the form that the graph has: a whole sequence, or a step with states.

    Args:
        graph: inputs and states become the model's inputs; a state `p` is `past/p`, its successor `present/p`.
        parameters: gives each logical parameter when its numbers are written; not called before.
        max_positions: the longest stream that a step form is made for, where its state grows with it.
        metadata: written into the model's own metadata.
        quantization: how matrices and caches are stored; float32 without one.
    Raises: CannotLower where an op has no ONNX form.
    """
    longest = None if graph.states and not grows(graph) else max_positions
    run = _Lowering(parameters, Emitter(max_positions=longest, quantization=quantization))
    m = run.m
    # A graph's own outputs and inputs come first to their names.
    for name in graph.outputs:
        m.fresh(name)
    env: dict[Value, Any] = {v: run.graph_input(v) for v in graph.inputs}
    run.run(graph.nodes, env, ())

    results: list[ir.Value] = []
    state_of = {s.path: s for s in m.states}
    for name, v in graph.outputs.items():
        stacked = dict(zip(layers(name), flatten(env[v]), strict=False))
        if set(stacked) <= set(state_of):
            for path, x in stacked.items():
                present = state_of[path].present = named(m, x, m.fresh(f"present/{path}"), results)
                results.append(present)
            continue
        x = named(m, run.solid(env[v]), name, results)
        x.type, x.shape = ir.TensorType(ONNX_DTYPES[v.type.dtype]), shape_of(v.type)
        results.append(x)
    for s in m.states:
        for kept in (s.past, s.present):
            if kept is not None and s.type is not None:
                kept.type, kept.shape = ir.TensorType(s.dtype or ONNX_DTYPES[s.type.dtype]), shape_of(s.type)

    replaced = fuse_residuals(m, results)
    nodes = live(m.nodes, results)
    used = {v for n in nodes for v in read(n)} | set(results)
    inputs = [x for v in graph.inputs for x in flatten(env[v]) if not is_weight(x)]
    optional = {env[v] for v in graph.of_kind(Input) if v.default is not None}
    model_graph = ir.Graph(
        [x for x in inputs if x in used or x not in optional],
        results,
        nodes=nodes,
        initializers=sorted((v for v in used if is_weight(v)), key=lambda v: str(v.name)),
        opset_imports={"": OPSET, MICROSOFT: 1},
        name=graph.name,
    )
    model = ir.Model(model_graph, ir_version=IR_VERSION, producer_name="planform")
    about = dict(metadata)
    if m.states:
        about["planform.states"] = json.dumps({s.path: s.layout for s in m.states})
        about["planform.max_positions"] = "" if longest is None else str(longest)
    model.metadata_props.update(sorted(about.items()))
    # A cache in the kernel's layout has other entries than the reference's ring.
    computed = {x for n in nodes for x in n.outputs} - {s.present for s in m.states if s.layout != "plain"}
    values = {key: replaced.get(x, x) for key, x in run.values.items()}
    names = {key: str(x.name) for key, x in values.items() if x in computed}
    kernels = {
        str(c.kernel.name): int(np.prod(c.kernel.shape.numpy()))
        for y, c in m.convolutions.items()
        if y in computed and c.kernel.shape is not None and is_weight(c.kernel)
    }
    return Lowered(
        model, names, m.states, m.below, longest, _used_products(m, used, replaced),
        [x for x in m.images if x in used], kernels, quantization,
    )  # fmt: skip


def _used_products(m: Emitter, used: set[ir.Value], replaced: Mapping[ir.Value, ir.Value]) -> list[Product]:
    products = (replace(p, x=replaced.get(p.x, p.x)) for p in m.products)
    return [p for p in products if p.x in used]


def flatten(x: Any) -> list[ir.Value]:
    return [x] if isinstance(x, ir.Value) else [v for i in x.items for v in flatten(i)]


def named(m: Emitter, x: ir.Value, name: str, taken: Sequence[ir.Value]) -> ir.Value:
    """x under an output's name; a copy of it where it has a name to keep (an input, a weight, another output)."""
    if x.producer() is None or x in taken:
        x = m.op("Identity", x)
    x.name = name
    return x


def live(nodes: Sequence[ir.Node], results: Sequence[ir.Value]) -> list[ir.Node]:
    """The nodes that the results need, in their order."""
    needed = set(results)
    kept = []
    for node in reversed(nodes):
        if any(v in needed for v in node.outputs):
            needed.update(read(node))
            kept.append(node)
    return kept[::-1]


def read(node: ir.Node) -> set[ir.Value]:
    """The values that a node needs, those that its bodies take from around them among them."""
    found = {v for v in node.inputs if v is not None}
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            body = attribute.as_graph()
            own = {*body.inputs, *body.initializers.values(), *(v for n in body for v in n.outputs)}
            found |= {v for n in body for v in read(n)} - own
    return found
