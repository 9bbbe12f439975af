"""Random valid graphs: ops with their own random examples, elementwise glue, nested repetitions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planform.compiler.ir import (
    Argument,
    Buffer,
    Builder,
    Graph,
    Init,
    Input,
    Origin,
    Parameter,
    State,
    Value,
    stacked_dim,
)
from planform.compiler.ops import OPS
from planform.compiler.ops.control import Repeat
from planform.compiler.ops.elementwise import Add, Cast, Div, Maximum, Mul, Neg, Sub, Tanh, number
from planform.compiler.ops.norm import GeluTanh, Softcap, Softmax
from planform.compiler.parameters import initial
from planform.compiler.size import symbol
from planform.compiler.types import Dim, TensorType

DRAWABLE = sorted(set(OPS) - {"repeat"})
PLACES = [None, "model.yaml:3:7", "a folder/model.yaml:12:1"]
WORDS = ["x", "attend.key", "h_2", "odd name", "0"]


@dataclass
class Example:
    """A graph with arrays to run it on."""

    graph: Graph
    inputs: dict[str, np.ndarray]

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        return {k: v + 0.1 for k, v in initial(self.graph.weights).items()}


def random_graph(seed: int) -> Graph:
    """A graph with every kind of input, a few nodes of any op and up to two nested repetitions."""
    return random_example(seed).graph


def random_example(seed: int) -> Example:
    """Such a graph and legal values of its inputs and states."""
    rng = np.random.default_rng(seed)
    b = Builder(str(rng.choice(["lm", "field net", "g"])), stream=str(rng.choice(["time", "rows"])))
    dims = (Dim("batch", symbol("batch")), Dim("time", symbol("time") // 4 + 3), Dim("d", 4))
    x: Value = b.add(Input("x", TensorType("f32", dims), _origin(rng), rng.choice(["zeros", "iota", None])))
    y: Value = b.add(_parameter(rng, "w", TensorType("f32", dims[-1:])))
    b.add(Buffer("mean", TensorType("f64", dims[-1:]), path="g.mean", init=Init("ones")))
    b.add(State("h", TensorType("i32", (Dim(None, symbol("time")),)), _origin(rng), path="g.h"))
    arrays = {"x": rng.normal(size=(2, 4, 4)), "g.h": np.arange(5)}
    z = _body(rng, b, b, [x, y], int(rng.integers(1, 7)), depth=2)
    outputs = {"y": b.emit(Tanh(), z)}
    for name in rng.choice(DRAWABLE, int(rng.integers(0, 4))):
        op, inputs = OPS[name].draw(rng)
        b.origin = _origin(rng)
        given = [b.add(Input(str(rng.choice(WORDS)), t, b.origin)) for t, _ in inputs]
        arrays.update({v.name: array for v, (_, array) in zip(given, inputs, strict=True)})
        made = b.emit(op, *given)
        for v in made if isinstance(made, tuple) else (made,):
            outputs[f"{name} {len(outputs)}" if rng.random() < 0.3 else f"{name}.{len(outputs)}"] = v
    return Example(b.finish(outputs), arrays)


def _origin(rng: np.random.Generator) -> Origin:
    return Origin(str(rng.choice(["", "lm.layer[0:99:2].feed", "odd path", "-x"])), rng.choice(PLACES))


def _parameter(rng: np.random.Generator, name: str, t: TensorType, stacked: int = 0) -> Parameter:
    init = Init("normal", (float(rng.normal()),)) if rng.random() < 0.5 else Init("zeros")
    return Parameter(name, t, _origin(rng), f"lm.{name}", init, stacked)


def _body(rng: np.random.Generator, b: Builder, root: Builder, values: list[Value], n: int, depth: int) -> Value:
    """Some nodes over values[0] [batch, time, d] and others that broadcast to it; returns one like values[0]."""
    x = values[0]
    values = list(values)
    for _ in range(n):
        b.origin = _origin(rng)
        same = [v for v in values if v.type == x.type]
        kind = rng.integers(0, 6)
        if kind == 0:
            constant = float(rng.normal()) if rng.random() < 0.5 else int(rng.integers(0, 3))
            values.append(number(b, constant))
        elif kind == 1:
            unary = [Neg(), Neg(), Tanh(), GeluTanh(), Softmax(), Cast("f32"), Softcap(float(rng.uniform(1, 3)))]
            values.append(b.emit(unary[rng.integers(len(unary))], same[rng.integers(len(same))]))
        elif kind == 2 and depth:
            values.append(_repeat(rng, b, root, same[rng.integers(len(same))], values, depth - 1))
        else:
            binary = [Add(), Sub(), Mul(), Maximum()]
            pair = [same[rng.integers(len(same))], values[rng.integers(len(values))]]
            if rng.random() < 0.2:
                pair[1] = number(b, float(rng.choice([0.0, 1.0, -2.5])))
            if rng.random() < 0.3:
                pair.reverse()
            values.append(b.emit(binary[rng.integers(len(binary))], *pair))
            if kind == 5 and rng.random() < 0.5:
                values.append(b.emit(Div(), values[-1], number(b, 4.0)))
    return next(v for v in reversed(values) if v.type == x.type)


def _repeat(rng: np.random.Generator, b: Builder, root: Builder, x: Value, values: list[Value], depth: int) -> Value:
    count = int(rng.integers(1, 4))
    inner = Builder(f"{b.name}.layer")
    carry = inner.add(Argument("x", x.type))
    body, outer = [carry], []
    if b is root and rng.random() < 0.7:
        t = TensorType("f32", (stacked_dim(count), Dim("d", 4)))
        outer.append(root.add(_parameter(rng, f"layer[0:{count}].stack", t, 1)))
        body.append(inner.add(Argument("slice", t.without([0]))))
    stacks = len(outer)
    for v in (v for v in values[:3] if rng.random() < 0.5):
        outer.append(v)
        body.append(inner.add(Argument(v.name, v.type)))
    y = _body(rng, inner, root, body, int(rng.integers(1, 5)), depth)
    outputs = {"0": y, **({"1": body[-1]} if rng.random() < 0.3 else {})}
    return b.emit(Repeat(count, 1, stacks), x, *outer, region=inner.finish(outputs))[0]
