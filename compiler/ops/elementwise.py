"""Elementwise ops: every output entry depends on one entry of each input. Operands broadcast by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from ..ir import Builder, Node, Value
from ..types import DTYPES, TensorType, TypeMismatch, align, broadcast, promote, scalar
from .broadcast import unbroadcast
from .contract import At, Cost, Gradients, Op, register
from .terms import Term

Slope = Callable[..., Term]
"""(gradient with respect to the result, operands .., result) -> that with respect to one operand, along the
result's dims."""

_erf = np.vectorize(math.erf, otypes=[np.float64])


@dataclass(frozen=True)
class Elementwise(Op):
    """Base of the family. `function` is the meaning on aligned arrays; `result` the dtype, if fixed; `slopes` what
    flows back to each operand (nothing, for those left out)."""

    family: ClassVar[str] = "elementwise"
    function: ClassVar[Callable[..., Any]]
    result: ClassVar[str | None] = None
    floats: ClassVar[bool] = False  # integers are taken as floats first
    domain: ClassVar[tuple[float, float]] = (-3.0, 3.0)  # where examples are drawn
    slopes: ClassVar[tuple[Slope | None, ...]] = ()

    def infer(self, *inputs: TensorType) -> TensorType:
        dtype = self.result or promote(t.dtype for t in inputs)
        if self.floats and dtype not in ("f16", "bf16", "f32", "f64"):
            dtype = "f32"
        return TensorType(dtype, broadcast(inputs))

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        dims = at.outputs[0].dims
        return type(self).function(*(align(a, t, dims) for a, t in zip(arrays, at.inputs)))

    def gradient(self, b: Builder, node: Node, above: Value) -> Gradients | None:
        terms = [Term(b, v) for v in (above, *node.inputs, node.output)]

        def one(slope: Slope, t: TensorType) -> Callable[[], Value]:
            return lambda: unbroadcast(b, slope(*terms).value, t)

        found = [one(s, v.type) if s and v.type.is_float else None for s, v in zip(self.slopes, node.inputs)]
        return found + [None] * (len(node.inputs) - len(found))

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats, random_dims

        dims = random_dims(rng, 3)
        types = [TensorType("f32", dims)]
        for _ in cls.tensors[1:]:
            keep = [d for d in dims if rng.random() < 0.7]
            types.append(
                TensorType(
                    "f32", tuple(rng.permutation(len(keep)).tolist() and [keep[i] for i in rng.permutation(len(keep))])
                )
            )
        return cls(), [(t, floats(rng, t, *cls.domain)) for t in types]


def _define(
    name: str, doc: str, function: Callable[..., Any], tensors: tuple[str, ...] = ("x",), **extra: Any
) -> type[Elementwise]:
    cls = type(
        name.title().replace("_", ""),
        (Elementwise,),
        {
            "name": name,
            "__doc__": doc,
            "function": staticmethod(function),
            "tensors": tensors,
            "__module__": __name__,
            **extra,
        },
    )
    return register(dataclass(frozen=True)(cls))


_TWO = ("x", "y")
Add = _define("add", "x + y.", lambda x, y: x + y, _TWO, slopes=(lambda g, x, y, z: g, lambda g, x, y, z: g))
Sub = _define("sub", "x - y.", lambda x, y: x - y, _TWO, slopes=(lambda g, x, y, z: g, lambda g, x, y, z: -g))
Mul = _define("mul", "x * y.", lambda x, y: x * y, _TWO, slopes=(lambda g, x, y, z: g * y, lambda g, x, y, z: g * x))
Div = _define(
    "div", "x / y.", lambda x, y: x / y, _TWO, floats=True, domain=(0.5, 3.0),
    slopes=(lambda g, x, y, z: g / y, lambda g, x, y, z: -g * z / y),
)  # fmt: skip
Pow = _define(
    "pow", "x to the power y, for x > 0.", lambda x, y: x**y, _TWO, floats=True, domain=(0.5, 2.0),
    slopes=(lambda g, x, y, z: g * y * x.of("pow", y - 1.0), lambda g, x, y, z: g * z * x.of("log")),
)  # fmt: skip
Maximum = _define(
    "maximum", "The larger of x and y; where they are equal, a gradient flows to x.", np.maximum, _TWO,
    slopes=(lambda g, x, y, z: (y <= x).where(g, 0.0), lambda g, x, y, z: (y <= x).where(0.0, g)),
)  # fmt: skip
Minimum = _define(
    "minimum", "The smaller of x and y; where they are equal, a gradient flows to x.", np.minimum, _TWO,
    slopes=(lambda g, x, y, z: (x <= y).where(g, 0.0), lambda g, x, y, z: (x <= y).where(0.0, g)),
)  # fmt: skip
Neg = _define("neg", "-x.", lambda x: -x, slopes=(lambda g, x, y: -g,))
Abs = _define("abs", "|x|.", np.abs, slopes=(lambda g, x, y: (x < 0.0).where(-g, g),))
Exp = _define("exp", "e to the power x.", np.exp, floats=True, slopes=(lambda g, x, y: g * y,))
Log = _define(
    "log", "Natural logarithm, for x > 0.", np.log, floats=True, domain=(0.1, 4.0), slopes=(lambda g, x, y: g / x,)
)
Sqrt = _define(
    "sqrt", "Square root, for x >= 0.", np.sqrt, floats=True, domain=(0.1, 4.0), slopes=(lambda g, x, y: 0.5 * g / y,)
)
Rsqrt = _define(
    "rsqrt", "1 / sqrt(x), for x > 0.", lambda x: 1 / np.sqrt(x), floats=True, domain=(0.1, 4.0),
    slopes=(lambda g, x, y: -0.5 * g * y * y * y,),
)  # fmt: skip
Square = _define("square", "x * x.", np.square, slopes=(lambda g, x, y: 2.0 * g * x,))
Tanh = _define("tanh", "Hyperbolic tangent.", np.tanh, floats=True, slopes=(lambda g, x, y: g * (1.0 - y * y),))
Sin = _define("sin", "Sine, x in radians.", np.sin, floats=True, slopes=(lambda g, x, y: g * x.of("cos"),))
Cos = _define("cos", "Cosine, x in radians.", np.cos, floats=True, slopes=(lambda g, x, y: -g * x.of("sin"),))
Erf = _define(
    "erf", "Error function, 2/sqrt(pi) * integral of exp(-t^2) from 0 to x.", _erf, floats=True,
    slopes=(lambda g, x, y: (2 / math.sqrt(math.pi)) * g * (-x * x).of("exp"),),
)  # fmt: skip
Sigmoid = _define(
    "sigmoid", "1 / (1 + exp(-x)).", lambda x: np.exp(-np.logaddexp(0, -x)), floats=True,
    slopes=(lambda g, x, y: g * y * (1.0 - y),),
)  # fmt: skip
Floor = _define("floor", "The largest whole number that is at most x; its gradient is zero.", np.floor)
Bfloat16 = _define(
    "bfloat16",
    "x rounded to bfloat16, 8 significant bits, and kept as it was stored; the gradient is that of x.",
    lambda x: np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float64),
    floats=True,
    slopes=(lambda g, x, y: g,),
)
Relu = _define("relu", "max(x, 0).", lambda x: np.maximum(x, 0), slopes=(lambda g, x, y: (x <= 0.0).where(0.0, g),))
Elu = _define(
    "elu", "x for x > 0, else e^x - 1 (Clevert et al., arXiv:1511.07289).",
    lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))), floats=True,
    slopes=(lambda g, x, y: (x <= 0.0).where(g * (y + 1.0), g),),
)  # fmt: skip
Less = _define("less", "x < y.", lambda x, y: x < y, _TWO, result="bool")
LessEqual = _define("less_equal", "x <= y.", lambda x, y: x <= y, _TWO, result="bool")
Equal = _define("equal", "x = y.", lambda x, y: x == y, _TWO, result="bool")


@register
@dataclass(frozen=True)
class And(Elementwise):
    """Both x and y, of bools."""

    name: ClassVar[str] = "logical_and"
    tensors: ClassVar[tuple[str, ...]] = _TWO
    result: ClassVar[str | None] = "bool"
    function = staticmethod(np.logical_and)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import random_dims

        t = TensorType("bool", random_dims(rng, 2))
        return cls(), [(t, rng.random(t.shape({})) < 0.5) for _ in range(2)]


@register
@dataclass(frozen=True)
class Where(Elementwise):
    """x where the condition holds, else y."""

    name: ClassVar[str] = "where"
    tensors: ClassVar[tuple[str, ...]] = ("condition", "x", "y")
    function = staticmethod(np.where)
    slopes = (None, lambda g, c, x, y, z: c.where(g, 0.0), lambda g, c, x, y, z: c.where(0.0, g))

    def infer(self, *inputs: TensorType) -> TensorType:
        if inputs[0].dtype != "bool":
            raise TypeMismatch(f"`where` needs a bool condition, this one is {inputs[0]}", code="PF0301")
        return TensorType(promote(t.dtype for t in inputs[1:]), broadcast(inputs))

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats, random_dims

        t = TensorType("f32", random_dims(rng, 2))
        return cls(), [(t.with_dtype("bool"), rng.random(t.shape({})) < 0.5)] + [(t, floats(rng, t)) for _ in range(2)]


@register
@dataclass(frozen=True)
class Clip(Op):
    """x, but at least `low` and at most `high`; beyond them no gradient flows. C1: low <= high."""

    name: ClassVar[str] = "clip"
    family: ClassVar[str] = "elementwise"
    low: float
    high: float

    def infer(self, *inputs: TensorType) -> TensorType:
        if not inputs[0].is_float:
            raise TypeMismatch(f"`clip` needs a float tensor, its input is {inputs[0]}", code="PF0301")
        if not self.low <= self.high:
            raise TypeMismatch(f"nothing lies between {self.low:g} and {self.high:g}", code="PF0320",
                               help=f"clip({self.high:g}, {self.low:g})")  # fmt: skip
        return inputs[0]

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        return np.clip(arrays[0], self.low, self.high)

    def decompose(self, b: Builder, *values: Value) -> Value:
        return Term(b, values[0]).of("maximum", self.low).of("minimum", self.high).value

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats, random_dims

        t = TensorType("f32", random_dims(rng, 3))
        low = float(rng.uniform(-2, 1))
        return cls(low, low + float(rng.uniform(0.1, 2))), [(t, floats(rng, t))]


@register
@dataclass(frozen=True)
class Cast(Elementwise):
    """x in another dtype."""

    name: ClassVar[str] = "cast"
    slopes = (lambda g, x, y: g,)
    dtype: str = "f32"

    def infer(self, *inputs: TensorType) -> TensorType:
        if self.dtype not in DTYPES:
            raise TypeMismatch(f"no dtype `{self.dtype}`", help="one of " + ", ".join(DTYPES))
        return inputs[0].with_dtype(self.dtype)

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        # Floats stay float64 in the reference: only the change of kind is meaning, rounding is not.
        return (
            arrays[0]
            if at.outputs[0].is_float and at.inputs[0].is_float
            else np.asarray(arrays[0], np.float64 if at.outputs[0].is_float else at.outputs[0].numpy)
        )

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats, random_dims

        t = TensorType("f32", random_dims(rng, 2))
        return cls(str(rng.choice(["i32", "f32"]))), [(t, floats(rng, t))]


@register
@dataclass(frozen=True)
class Stop(Elementwise):
    """x, through which no gradient flows."""

    name: ClassVar[str] = "stop"
    function = staticmethod(lambda x: x)


@register
@dataclass(frozen=True)
class Constant(Op):
    """A number as a tensor without dims."""

    name: ClassVar[str] = "constant"
    tensors: ClassVar[tuple[str, ...]] = ()
    family: ClassVar[str] = "elementwise"
    spelled: ClassVar[bool] = False
    value: float = 0.0
    dtype: str = "f32"

    def infer(self, *inputs: TensorType) -> TensorType:
        return scalar(self.dtype)

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        return np.asarray(self.value, np.float64 if at.outputs[0].is_float else at.outputs[0].numpy)

    def cost(self, *inputs: TensorType) -> Cost:
        return Cost(0, 1)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        return cls(float(rng.normal())), []


def number(b: Builder, value: float) -> Value:
    """A constant in a graph; integers stay integers, so that they do not widen what they meet."""
    return b.emit(Constant(value, "i32" if isinstance(value, int) else "f32"), hint="constant")
