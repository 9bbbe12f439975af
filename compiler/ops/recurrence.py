"""Recurrences along the stream: linear ones with a diagonal decay, causal depthwise convolutions, and what feeds them.

Documents start where the position is 0: there nothing of what came before counts. In step form the state runs on from
`length`, and entries beyond a row's `count` leave it as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..ir import Builder, Init, Value
from ..size import divide
from ..types import Dim, TensorType, TypeMismatch
from .contract import At, Cost, Op, ParameterDecl, Reach, StateDecl, register
from .elementwise import Add, Equal, Exp, Mul, Neg, Sqrt, Sub, Where, number
from .linear import Embed
from .sequence import Iota

GRADIENT_BOUND = 1000.0
"""The largest derivative that sqrt(1 - a^2) is given, where a comes near 1 (arXiv:2402.19427, section 2.4)."""


def _along_stream(op: Op, x: TensorType) -> None:
    if not x.is_float:
        raise TypeMismatch(f"`{op.name}` needs a float tensor, its input is {x}", code="PF0301")
    if x.rank < 3:
        raise TypeMismatch(f"`{op.name}` runs along the second dim of [batch, time, ..], its input is {x}")


# -- the decay ---------------------------------------------------------------------------------------------------


@register
@dataclass(frozen=True)
class LogDecay(Op):
    """log a = -c * x * softplus(rate), with a rate for each entry of the last dim: how fast a recurrence forgets.

    x is a gate in [0, 1]; softplus(r) = log(1 + exp(r)). `rate` [d] starts so that exp(-softplus(rate)) is the
    radius of a point drawn evenly from the ring between 0.9 and 0.999.
    Source: De et al., arXiv:2402.19427, equations 3 and 4, with Lambda = -rate.
    """

    name: ClassVar[str] = "log_decay"
    family: ClassVar[str] = "recurrence"
    c: float = 8.0

    def parameters(self, *inputs: TensorType) -> Mapping[str, ParameterDecl]:
        return {"rate": ParameterDecl(inputs[0].dims[-1:], Init("ring", (0.9, 0.999)))}

    def infer(self, *inputs: TensorType) -> TensorType:
        if not inputs[0].is_float or not inputs[0].rank:
            raise TypeMismatch(f"`log_decay` needs a float tensor with at least one dim, its input is {inputs[0]}")
        return inputs[0]

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        x, rate = arrays
        return -self.c * x * np.logaddexp(0.0, rate)

    def mistakes(self, *inputs: TensorType) -> Mapping[str, Op | Callable[..., Value]]:
        return {
            "rate of the other sign": lambda b, x, rate: b.emit(self, x, b.emit(Neg(), rate)),
            "c off": replace(self, c=self.c * 1.01),
        }

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats, random_dims

        x = TensorType("f32", random_dims(rng, 3))
        rate = TensorType("f32", x.dims[-1:])
        return cls(float(rng.uniform(0.5, 9))), [(x, floats(rng, x, 0.0, 1.0)), (rate, floats(rng, rate, -9.0, 3.0))]


# -- the recurrence ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Recurrence(Op):
    family: ClassVar[str] = "recurrence"
    normalise: bool = False

    def same(self, x: TensorType, log_decay: TensorType) -> TensorType:
        _along_stream(self, x)
        if x.dims != log_decay.dims:
            raise TypeMismatch(f"x {x} and log_decay {log_decay} must have the same dims", code="PF0312")
        return x

    def scan(self, x: np.ndarray, log_decay: np.ndarray, first: np.ndarray, h: np.ndarray, valid: np.ndarray) -> Any:
        """(h of every entry, h after the last valid one), in float64; first, valid: bool[batch, time]. An entry that
        isn't valid hands on what it got."""
        a, root = np.exp(log_decay), np.sqrt(-np.expm1(2 * log_decay))  # sqrt(1 - a^2), near 1 as well
        out = np.empty(x.shape)
        extend = (slice(None), *[None] * (x.ndim - 2))
        for t in range(x.shape[1]):
            new = first[:, t][extend]
            b = x[:, t] * np.where(new, 1.0, root[:, t]) if self.normalise else x[:, t]
            h = np.where(valid[:, t][extend], np.where(new, 0.0, a[:, t] * h) + b, h)
            out[:, t] = h
        return out, h

    def cost(self, *inputs: TensorType) -> Cost:
        return Cost((8 if self.normalise else 3) * inputs[0].elements, 3 * inputs[0].elements)


@register
@dataclass(frozen=True)
class LinearRecurrence(_Recurrence):
    """h_t = a_t h_(t-1) + b_t along the stream, a = exp(log_decay), elementwise in all other dims; gives h.

    x and log_decay [batch, time, ..] have the same dims; b = x, or with `normalise` b_t = sqrt(1 - a_t^2) x_t,
    which keeps the variance. At a document's first entry h_(t-1) is 0 and b_t = x_t. In float32 or wider; the
    derivative of the square root is bounded by 1000. Constraint C1: log_decay <= 0.
    Source: De et al., arXiv:2402.19427, equation 4.
    """

    name: ClassVar[str] = "linear_recurrence"
    tensors: ClassVar[tuple[str, ...]] = ("x", "log_decay")

    def reads(self) -> tuple[str, ...]:
        return ("position",)

    def infer(self, *inputs: TensorType) -> TensorType:
        return self.same(*inputs[:2])

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        x, log_decay, position = arrays
        zeros = np.zeros((x.shape[0], *x.shape[2:]))
        out: np.ndarray = self.scan(x, log_decay, position == 0, zeros, np.ones(position.shape, bool))[0]
        return out

    def reach(self) -> Reach:
        return Reach(None, 0)

    def streaming(self, *inputs: TensorType) -> tuple[Op, tuple[StateDecl, ...]] | None:
        x = inputs[0]
        # However small the activations are stored, what is added up over thousands of steps is not.
        state = TensorType("f32", (x.dims[0], *x.dims[2:]))
        return LinearRecurrenceCached(self.normalise), (StateDecl("state", state),)

    def mistakes(self, *inputs: TensorType) -> Mapping[str, Op | Callable[..., Value]]:
        found: dict[str, Op | Callable[..., Value]] = {
            "no reset": lambda b, x, a, position: b.emit(self, x, a, b.emit(Add(), position, number(b, 1))),
        }
        if self.normalise:
            found["not normalised"] = replace(self, normalise=False)
            found["a document's first entry normalised"] = self.first_normalised
        return found

    def first_normalised(self, b: Builder, x: Value, log_decay: Value, position: Value) -> Value:
        """The mistake of resetting what is carried, but not the factor of what comes in."""
        a = b.emit(Exp(), log_decay)
        less = b.emit(Mul(), x, b.emit(Sqrt(), b.emit(Sub(), number(b, 1.0), b.emit(Mul(), a, a))))
        first = b.emit(Equal(), position, number(b, 0))
        y: Value = b.emit(self, b.emit(Where(), first, less, x), log_decay, position)
        return y

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import documents, floats

        time = int(rng.integers(1, 12))
        x = TensorType("f32", (Dim("batch", 2), Dim("time", time), Dim("d", int(rng.integers(1, 5)))))
        p = TensorType("i32", x.dims[:2])
        decay = floats(rng, x, -3.0, -0.01)
        op = cls(normalise=bool(rng.random() < 0.5))
        return op, [(x, floats(rng, x)), (x, decay), (p, documents(rng, 2, time)[0])]


@register
@dataclass(frozen=True)
class LinearRecurrenceCached(_Recurrence):
    """`linear_recurrence` for a chunk of new entries that go on from `state` [batch, ..].

    `length` int32[batch] counts the entries before the chunk (a stream's first entry starts its document), `count`
    the valid ones in it. Gives h [batch, time, ..] and the state after each row's last valid entry; h at padded places
    is arbitrary but finite. `normalise` is that of `linear_recurrence`.
    """

    name: ClassVar[str] = "linear_recurrence_cached"
    tensors: ClassVar[tuple[str, ...]] = ("x", "log_decay", "state", "length", "count")
    spelled: ClassVar[bool] = False

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        return self.same(*inputs[:2]), inputs[2]

    def reference(self, at: At, *arrays: np.ndarray) -> Any:
        x, log_decay, state, length, count = arrays
        t = np.arange(x.shape[1])
        return self.scan(x, log_decay, length[:, None] + t == 0, state, t < count[:, None])

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats, integers

        time = int(rng.integers(1, 8))
        x = TensorType("f32", (Dim("batch", 3), Dim("time", time), Dim("d", int(rng.integers(1, 5)))))
        state, rows = TensorType("f32", (x.dims[0], x.dims[2])), TensorType("i32", x.dims[:1])
        length = integers(rng, rows, 0, 3)
        held = floats(rng, state) * (length > 0)[:, None]
        op = cls(normalise=bool(rng.random() < 0.5))
        return op, [(x, floats(rng, x)), (x, floats(rng, x, -3.0, -0.01)), (state, held), (rows, length),
                    (rows, integers(rng, rows, 0, time + 1))]  # fmt: skip


# -- convolutions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Conv1d(Op):
    family: ClassVar[str] = "recurrence"
    width: int
    bias: bool = False

    def checked(self, x: TensorType) -> TensorType:
        _along_stream(self, x)
        if self.width < 1:
            raise TypeMismatch(f"a convolution of {self.width} taps", help="at least 1")
        return x

    def parameters(self, *inputs: TensorType) -> Mapping[str, ParameterDecl]:
        x = self.checked(inputs[0])
        found = {"weight": ParameterDecl((Dim(None, self.width), *x.dims[2:]), Init("fan_in", (1.0,)))}
        if self.bias:
            found["bias"] = ParameterDecl(x.dims[2:], Init("zeros"))
        return found

    def taps(self, x: np.ndarray, weight: np.ndarray, bias: list[np.ndarray], seen: np.ndarray) -> np.ndarray:
        """x [batch, width - 1 + time, ..] with what stands before it; seen int[batch, time]: how many entries of its
        document stand before each."""
        time = x.shape[1] - self.width + 1
        out = np.zeros((x.shape[0], time, *x.shape[2:]))
        for s in range(self.width):
            real = (seen >= s).reshape(*seen.shape, *[1] * (x.ndim - 2))
            out += (
                np.where(real, x[:, self.width - 1 - s : self.width - 1 - s + time], 0.0) * weight[self.width - 1 - s]
            )
        return out + bias[0] if bias else out

    def cost(self, *inputs: TensorType) -> Cost:
        return Cost(2 * self.width * inputs[0].elements, 2 * inputs[0].elements)


@register
@dataclass(frozen=True)
class Conv1d(_Conv1d):
    """y_t = sum over s < width of weight[width - 1 - s] x_(t-s) (+ bias): causal, along the stream, each channel alone.

    x is [batch, time, ..], weight [width, ..]; the last tap meets the entry itself. What stands before a document's
    first entry counts as 0.
    Source: De et al., arXiv:2402.19427, section 2.1 (a temporal convolution of width 4).
    """

    name: ClassVar[str] = "conv1d"

    def reads(self) -> tuple[str, ...]:
        return ("position",)

    def infer(self, *inputs: TensorType) -> TensorType:
        return self.checked(inputs[0])

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        x, weight, *bias, position = arrays
        before = np.zeros((x.shape[0], self.width - 1, *x.shape[2:]))
        return self.taps(np.concatenate([before, x], 1), weight, bias, position)

    def reach(self) -> Reach:
        return Reach(self.width - 1, 0)

    def streaming(self, *inputs: TensorType) -> tuple[Op, tuple[StateDecl, ...]] | None:
        x = inputs[0]
        if self.width == 1:
            return None
        state = TensorType(x.dtype, (x.dims[0], Dim(None, self.width - 1), *x.dims[2:]))
        return Conv1dCached(self.width, self.bias), (StateDecl("inputs", state),)

    def mistakes(self, *inputs: TensorType) -> Mapping[str, Op | Callable[..., Value]]:
        def across(b: Builder, *values: Value) -> Value:
            y: Value = b.emit(self, *values[:-1], b.emit(Add(), values[-1], number(b, self.width)))
            return y

        def reversed_taps(b: Builder, x: Value, weight: Value, *rest: Value) -> Value:
            rows = b.emit(Sub(), number(b, self.width - 1), b.emit(Iota(weight.type.dims[:1])))
            y: Value = b.emit(self, x, b.emit(Embed(), rows, weight), *rest)
            return y

        if self.width == 1 or inputs[0].rank != 3:
            return {"documents run together": across} if self.width > 1 else {}
        return {"documents run together": across, "taps reversed": reversed_taps}

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import documents, floats

        time = int(rng.integers(1, 12))
        x = TensorType("f32", (Dim("batch", 2), Dim("time", time), Dim("d", int(rng.integers(1, 5)))))
        op = cls(int(rng.integers(1, 6)), bool(rng.random() < 0.5))
        types = [x, *(TensorType(p.dtype, p.dims) for p in op.parameters(x).values())]
        position = (TensorType("i32", x.dims[:2]), documents(rng, 2, time)[0])
        return op, [*((t, floats(rng, t)) for t in types), position]


@register
@dataclass(frozen=True)
class Conv1dCached(_Conv1d):
    """`conv1d` for a chunk of new entries, with the `width` - 1 inputs before it in `inputs` [batch, width - 1, ..].

    `length` int32[batch] counts the entries before the chunk, `count` the valid ones in it. Gives y and the inputs
    before the next chunk. `bias` is that of `conv1d`.
    """

    name: ClassVar[str] = "conv1d_cached"
    spelled: ClassVar[bool] = False

    def arguments(self, values: Any) -> tuple[Any, ...]:
        """(x, weight, biases, inputs, length, count) of the op's values."""
        x, weight, *bias, inputs, length, count = values
        return x, weight, bias, inputs, length, count

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        x, _, _, kept, _, _ = self.arguments(inputs)
        return self.checked(x), kept

    def reference(self, at: At, *arrays: np.ndarray) -> Any:
        x, weight, bias, kept, length, count = self.arguments(arrays)
        both = np.concatenate([kept, x], 1)
        y = self.taps(both, weight, bias, length[:, None] + np.arange(x.shape[1]))
        rows = count[:, None] + np.arange(self.width - 1)
        return y, both[np.arange(len(x))[:, None], rows]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats, integers

        time = int(rng.integers(1, 8))
        x = TensorType("f32", (Dim("batch", 3), Dim("time", time), Dim("d", int(rng.integers(1, 5)))))
        op = cls(int(rng.integers(2, 6)), bool(rng.random() < 0.5))
        types = [x, *(TensorType(p.dtype, p.dims) for p in op.parameters(x).values())]
        kept, rows = TensorType("f32", (x.dims[0], Dim(None, op.width - 1), x.dims[2])), TensorType("i32", x.dims[:1])
        length = integers(rng, rows, 0, 7)
        held = floats(rng, kept)
        age = np.arange(op.width - 1, 0, -1)  # the oldest first; what was before the stream's start is zero
        held[age > length[:, None]] = 0
        return op, [*((t, floats(rng, t)) for t in types), (kept, held), (rows, length),
                    (rows, integers(rng, rows, 0, time + 1))]  # fmt: skip


# -- block-diagonal products -------------------------------------------------------------------------------------


@register
@dataclass(frozen=True)
class BlockLinear(Op):
    """The last dim in `blocks` equal parts, part h mapped to itself by weight[h] (+ bias): a block-diagonal matrix.

    x [.., d]; weight [blocks, d / blocks, d / blocks], bias [d]. Constraint C1: `blocks` divides d. Weights start
    as normal(0, 1 / sqrt(d / blocks)), biases as zeros.
    """

    name: ClassVar[str] = "block_linear"
    family: ClassVar[str] = "linear"
    blocks: int
    bias: bool = False

    def part(self, x: TensorType) -> Any:
        """The size of a part. Raises: TypeMismatch (C1)."""
        if not x.rank:
            raise TypeMismatch("`block_linear` needs an input with at least one dim")
        part = divide(x.sizes[-1], self.blocks) if self.blocks > 0 else None
        if part is None or not isinstance(part, int):
            raise TypeMismatch(
                f"`{x.dims[-1]}` has no {self.blocks} equal parts", code="PF0325",
                help="the number of blocks must divide the width",
            )  # fmt: skip
        return part

    def parameters(self, *inputs: TensorType) -> Mapping[str, ParameterDecl]:
        x = inputs[0]
        part = Dim(None, self.part(x))
        # Not the first size but the second is summed over: the fan is that of one block.
        weight = ParameterDecl((Dim("blocks", self.blocks), part, part), Init("normal", (float(part.size) ** -0.5,)))  # type: ignore[arg-type]
        return {"weight": weight, **({"bias": ParameterDecl(x.dims[-1:], Init("zeros"))} if self.bias else {})}

    def infer(self, *inputs: TensorType) -> TensorType:
        self.part(inputs[0])
        return inputs[0]

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        x, weight, *bias = arrays
        parts = x.reshape(*x.shape[:-1], self.blocks, -1)
        y = np.einsum("...hi,hij->...hj", parts, weight).reshape(x.shape)
        return y + bias[0] if bias else y

    def cost(self, *inputs: TensorType) -> Cost:
        return Cost(
            2 * inputs[0].elements * self.part(inputs[0]), sum((t.elements for t in inputs), inputs[0].elements)
        )

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats, random_dims

        blocks = int(rng.integers(1, 4))
        dims = random_dims(rng, 3)
        x = TensorType("f32", (*dims[:-1], Dim(dims[-1].name, blocks * int(rng.integers(1, 4)))))
        op = cls(blocks, bool(rng.random() < 0.5))
        types = [x, *(TensorType(p.dtype, p.dims) for p in op.parameters(x).values())]
        return op, [(t, floats(rng, t)) for t in types]
