"""Elementwise ops: every output entry depends on one entry of each input. Operands broadcast by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from ..ir import Builder, Value
from ..types import DTYPES, TensorType, TypeMismatch, align, broadcast, promote, scalar
from .contract import At, Cost, Op, register

_erf = np.vectorize(math.erf, otypes=[np.float64])


@dataclass(frozen=True)
class Elementwise(Op):
    """Base of the family. `function` is the meaning on aligned arrays; `result` the dtype, if fixed."""

    family: ClassVar[str] = "elementwise"
    function: ClassVar[Callable[..., Any]]
    result: ClassVar[str | None] = None
    floats: ClassVar[bool] = False  # integers are taken as floats first
    domain: ClassVar[tuple[float, float]] = (-3.0, 3.0)  # where examples are drawn

    def infer(self, *inputs: TensorType) -> TensorType:
        dtype = self.result or promote(t.dtype for t in inputs)
        if self.floats and dtype not in ("f16", "bf16", "f32", "f64"):
            dtype = "f32"
        return TensorType(dtype, broadcast(inputs))

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        dims = at.outputs[0].dims
        return type(self).function(*(align(a, t, dims) for a, t in zip(arrays, at.inputs)))

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
Add = _define("add", "x + y.", lambda x, y: x + y, _TWO)
Sub = _define("sub", "x - y.", lambda x, y: x - y, _TWO)
Mul = _define("mul", "x * y.", lambda x, y: x * y, _TWO)
Div = _define("div", "x / y.", lambda x, y: x / y, _TWO, floats=True, domain=(0.5, 3.0))
Pow = _define("pow", "x to the power y, for x > 0.", lambda x, y: x**y, _TWO, floats=True, domain=(0.5, 2.0))
Maximum = _define("maximum", "The larger of x and y.", np.maximum, _TWO)
Minimum = _define("minimum", "The smaller of x and y.", np.minimum, _TWO)
Neg = _define("neg", "-x.", lambda x: -x)
Abs = _define("abs", "|x|.", np.abs)
Exp = _define("exp", "e to the power x.", np.exp, floats=True)
Log = _define("log", "Natural logarithm, for x > 0.", np.log, floats=True, domain=(0.1, 4.0))
Sqrt = _define("sqrt", "Square root, for x >= 0.", np.sqrt, floats=True, domain=(0.1, 4.0))
Rsqrt = _define("rsqrt", "1 / sqrt(x), for x > 0.", lambda x: 1 / np.sqrt(x), floats=True, domain=(0.1, 4.0))
Square = _define("square", "x * x.", np.square)
Tanh = _define("tanh", "Hyperbolic tangent.", np.tanh, floats=True)
Sin = _define("sin", "Sine, x in radians.", np.sin, floats=True)
Cos = _define("cos", "Cosine, x in radians.", np.cos, floats=True)
Erf = _define("erf", "Error function, 2/sqrt(pi) * integral of exp(-t^2) from 0 to x.", _erf, floats=True)
Sigmoid = _define("sigmoid", "1 / (1 + exp(-x)).", lambda x: 0.5 * (np.tanh(0.5 * x) + 1), floats=True)
Bfloat16 = _define(
    "bfloat16",
    "x rounded to bfloat16, 8 significant bits, and kept as it was stored; the gradient is that of x.",
    lambda x: np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float64),
    floats=True,
)
Relu = _define("relu", "max(x, 0).", lambda x: np.maximum(x, 0))
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
class Cast(Elementwise):
    """x in another dtype."""

    name: ClassVar[str] = "cast"
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
