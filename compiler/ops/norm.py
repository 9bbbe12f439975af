"""Normalisations and activations with a scale of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..ir import Builder, Init, Value
from ..types import Dim, TensorType, TypeMismatch
from .contract import At, Cost, Op, ParameterDecl, register
from .elementwise import Add, Div, Erf, Exp, Mul, Rsqrt, Sigmoid, Square, Sub, Tanh, number
from .reduce import Max, Mean, Sum


@dataclass(frozen=True)
class _SameShape(Op):
    def infer(self, *inputs: TensorType) -> TensorType:
        x = inputs[0]
        if not x.is_float:
            raise TypeMismatch(f"`{self.name}` needs a float tensor, its input is {x}", code="PF0301")
        return x

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats, random_dims

        op = cls()
        x = TensorType("f32", random_dims(rng, 3))
        types = [x, *(TensorType(p.dtype, p.dims) for p in op.parameters(x).values())]
        return op, [(t, floats(rng, t)) for t in types]


@register
@dataclass(frozen=True)
class RmsNorm(_SameShape):
    """y = x / sqrt(mean(x^2) + eps) * (offset + scale), over the last dim; in float32 or wider.

    Source: Zhang and Sennrich, arXiv:1910.07467; offset 1 as in Gemma. `scale` [d] starts so that
    offset + scale = 1.
    """

    name: ClassVar[str] = "rms_norm"
    family: ClassVar[str] = "norm"
    mixes_last: ClassVar[int] = 1
    offset: float = 0.0
    eps: float = 1e-6

    def parameters(self, *inputs: TensorType) -> Mapping[str, ParameterDecl]:
        if not inputs[0].rank:
            raise TypeMismatch("`rms_norm` needs an input with at least one dim")
        return {"scale": ParameterDecl(inputs[0].dims[-1:], Init("constant", (1.0 - self.offset,)))}

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        x, scale = arrays
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + self.eps) * (self.offset + scale)

    def decompose(self, b: Builder, *values: Value) -> Value:
        x, scale = values
        mean = b.emit(Mean(over=x.type.dims[-1:]), b.emit(Square(), x))
        y = b.emit(Mul(), x, b.emit(Rsqrt(), b.emit(Add(), mean, number(b, self.eps))))
        if self.offset:
            scale = b.emit(Add(), scale, number(b, self.offset))
        return b.emit(Mul(), y, scale)

    def cost(self, *inputs: TensorType) -> Cost:
        return Cost(4 * inputs[0].elements, 2 * inputs[0].elements)

    def mistakes(self, *inputs: TensorType) -> Mapping[str, Op | Callable[..., Value]]:
        return {"offset forgotten": replace(self, offset=0.0)} if self.offset else {}

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        op, inputs = super().draw(rng)
        return cls(offset=float(rng.integers(0, 2)), eps=1e-3), inputs


@register
@dataclass(frozen=True)
class AddRmsNorm(Op):
    """(rms_norm(x + y), x + y): a residual step and the norm after it as one op that reads the sum once.

    x and y have one type; `offset`, `eps` and `scale` are those of `rms_norm`.
    """

    name: ClassVar[str] = "add_rms_norm"
    family: ClassVar[str] = "norm"
    mixes_last: ClassVar[int] = 1
    tensors: ClassVar[tuple[str, ...]] = ("x", "y")
    spelled: ClassVar[bool] = False
    offset: float = 0.0
    eps: float = 1e-6

    def norm(self) -> RmsNorm:
        return RmsNorm(self.offset, self.eps)

    def parameters(self, *inputs: TensorType) -> Mapping[str, ParameterDecl]:
        return self.norm().parameters(*inputs[:1])

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        x, y = inputs[:2]
        if not x.is_float or x != y:
            raise TypeMismatch(f"`add_rms_norm` needs two float tensors of one type, not {x} and {y}")
        return x, x

    def reference(self, at: At, *arrays: np.ndarray) -> Any:
        x, y, scale = arrays
        return self.norm().reference(at, x + y, scale), x + y

    def decompose(self, b: Builder, *values: Value) -> Any:
        x, y, scale = values
        total = b.emit(Add(), x, y)
        return b.emit(self.norm(), total, scale), total

    def cost(self, *inputs: TensorType) -> Cost:
        return Cost(5 * inputs[0].elements, 4 * inputs[0].elements)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats

        op, inputs = RmsNorm.draw(rng)
        x = inputs[0][0]
        return cls(op.offset, op.eps), [inputs[0], (x, floats(rng, x)), *inputs[1:]]  # type: ignore[attr-defined]


@register
@dataclass(frozen=True)
class LayerNorm(_SameShape):
    """y = (x - mean(x)) / sqrt(var(x) + eps) * scale (+ bias), over the last dim; in float32 or wider.

    Source: Ba, Kiros and Hinton, arXiv:1607.06450.
    """

    name: ClassVar[str] = "layer_norm"
    family: ClassVar[str] = "norm"
    mixes_last: ClassVar[int] = 1
    bias: bool = False
    eps: float = 1e-5

    def parameters(self, *inputs: TensorType) -> Mapping[str, ParameterDecl]:
        if not inputs[0].rank:
            raise TypeMismatch("`layer_norm` needs an input with at least one dim")
        found = {"scale": ParameterDecl(inputs[0].dims[-1:], Init("constant", (1.0,)))}
        if self.bias:
            found["bias"] = ParameterDecl(inputs[0].dims[-1:], Init("zeros"))
        return found

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        x, scale, *bias = arrays
        centred = x - np.mean(x, -1, keepdims=True)
        y = centred / np.sqrt(np.mean(centred**2, -1, keepdims=True) + self.eps) * scale
        return y + bias[0] if bias else y

    def decompose(self, b: Builder, *values: Value) -> Value:
        x, scale, *bias = values
        over = x.type.dims[-1:]
        centred = b.emit(Sub(), x, b.emit(Mean(over=over), x))
        var = b.emit(Mean(over=over), b.emit(Square(), centred))
        y = b.emit(Mul(), centred, b.emit(Rsqrt(), b.emit(Add(), var, number(b, self.eps))))
        y = b.emit(Mul(), y, scale)
        return b.emit(Add(), y, bias[0]) if bias else y

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats

        op = cls(bias=bool(rng.random() < 0.5), eps=1e-2)
        x = TensorType("f32", (Dim("batch", 3), Dim("d", int(rng.integers(1, 6)))))
        types = [x, *(TensorType(p.dtype, p.dims) for p in op.parameters(x).values())]
        return op, [(t, floats(rng, t)) for t in types]


@register
@dataclass(frozen=True)
class Softmax(_SameShape):
    """exp(x) / sum of exp(x) over the last dim; in float32 or wider."""

    name: ClassVar[str] = "softmax"
    family: ClassVar[str] = "norm"
    mixes_last: ClassVar[int] = 1

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        e = np.exp(arrays[0] - np.max(arrays[0], -1, keepdims=True))
        return e / np.sum(e, -1, keepdims=True)

    def decompose(self, b: Builder, *values: Value) -> Value:
        over = values[0].type.dims[-1:]
        e = b.emit(Exp(), b.emit(Sub(), values[0], b.emit(Max(over=over), values[0])))
        return b.emit(Div(), e, b.emit(Sum(over=over), e))


@register
@dataclass(frozen=True)
class Softcap(_SameShape):
    """y = cap * tanh(x / cap): values stay within (-cap, cap), small ones unchanged.

    Source: Gemma 2, arXiv:2408.00118, section 2. C1: cap > 0.
    """

    name: ClassVar[str] = "softcap"
    family: ClassVar[str] = "activation"
    cap: float

    def infer(self, *inputs: TensorType) -> TensorType:
        if not self.cap > 0:
            raise TypeMismatch(f"a cap of {self.cap} caps nothing", code="PF0320", help="`cap` must be above 0")
        return super().infer(*inputs)

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        return self.cap * np.tanh(arrays[0] / self.cap)

    def decompose(self, b: Builder, *values: Value) -> Value:
        y = b.emit(Tanh(), b.emit(Mul(), values[0], number(b, 1.0 / self.cap)))
        return b.emit(Mul(), y, number(b, float(self.cap)))

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats, random_dims

        x = TensorType("f32", random_dims(rng, 3))
        return cls(float(rng.uniform(0.5, 3))), [(x, floats(rng, x))]


@register
@dataclass(frozen=True)
class GeluTanh(_SameShape):
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).

    Source: Hendrycks and Gimpel, arXiv:1606.08415, section 2 (the tanh approximation).
    """

    name: ClassVar[str] = "gelu_tanh"
    family: ClassVar[str] = "activation"

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        x = arrays[0]
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def decompose(self, b: Builder, *values: Value) -> Value:
        x = values[0]
        cubic = b.emit(Mul(), b.emit(Mul(), b.emit(Square(), x), x), number(b, 0.044715))
        inner = b.emit(Mul(), b.emit(Add(), x, cubic), number(b, math.sqrt(2 / math.pi)))
        gate = b.emit(Add(), b.emit(Tanh(), inner), number(b, 1.0))
        return b.emit(Mul(), b.emit(Mul(), x, number(b, 0.5)), gate)

    def mistakes(self, *inputs: TensorType) -> Mapping[str, Op | Callable[..., Value]]:
        return {"the exact form": Gelu()}

    def cost(self, *inputs: TensorType) -> Cost:
        return Cost(9 * inputs[0].elements, 2 * inputs[0].elements)


@register
@dataclass(frozen=True)
class Gelu(_SameShape):
    """x * Phi(x), Phi the normal distribution function. Source: arXiv:1606.08415."""

    name: ClassVar[str] = "gelu"
    family: ClassVar[str] = "activation"

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        x = arrays[0]
        return 0.5 * x * (1 + Erf.function(x / math.sqrt(2)))

    def decompose(self, b: Builder, *values: Value) -> Value:
        x = values[0]
        gate = b.emit(Add(), b.emit(Erf(), b.emit(Mul(), x, number(b, math.sqrt(0.5)))), number(b, 1.0))
        return b.emit(Mul(), b.emit(Mul(), x, number(b, 0.5)), gate)

    def mistakes(self, *inputs: TensorType) -> Mapping[str, Op | Callable[..., Value]]:
        return {"the approximate form": GeluTanh()}


@register
@dataclass(frozen=True)
class Silu(_SameShape):
    """x * sigmoid(x). Source: Elfwing, Uchibe and Doya, arXiv:1702.03118."""

    name: ClassVar[str] = "silu"
    family: ClassVar[str] = "activation"

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        return arrays[0] * Sigmoid.function(arrays[0])

    def decompose(self, b: Builder, *values: Value) -> Value:
        return b.emit(Mul(), values[0], b.emit(Sigmoid(), values[0]))
