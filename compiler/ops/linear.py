"""Products over named dims: linear maps, embeddings, general contractions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from ..ir import Builder, Init, Node, Value
from ..size import Size
from ..types import Dim, TensorType, TypeMismatch, promote
from .broadcast import unbroadcast
from .contract import At, Cost, Gradients, Op, ParameterDecl, register
from .einsum import product_gradients
from .take import Put

T = TypeVar("T")


def _letters(count: int) -> str:
    return "".join(chr(ord("a") + i) for i in range(count))


def _product(sizes: Any) -> Size:
    n: Size = 1
    for s in sizes:
        n = n * s
    return n


@register
@dataclass(frozen=True)
class Linear(Op):
    """y[.., out] = sum over `over` of x[.., over] weight[over, out] (+ bias[out]).

    `out` names one or several result dims, appended last; `over` the dims summed away (default: the
    last). Weights start as normal(0, 1 / sqrt(fan in)), biases as zeros.
    """

    name: ClassVar[str] = "linear"
    family: ClassVar[str] = "linear"
    out: tuple[Dim, ...]
    over: tuple[Dim, ...] | None = None
    bias: bool = False

    def _over(self, x: TensorType) -> tuple[int, ...]:
        if self.over is None:
            if not x.rank:
                raise TypeMismatch("`linear` needs an input with at least one dim")
            return (x.rank - 1,)
        axes = []
        for d in self.over:
            axis = x.axis(d.name) if d.name else None
            if axis is None or x.dims[axis].size != d.size:
                raise TypeMismatch(f"`linear` sums over `{d}`, which {x} does not have")
            axes.append(axis)
        return tuple(axes)

    def parameters(self, *inputs: TensorType) -> Mapping[str, ParameterDecl]:
        x = inputs[0]
        over = tuple(x.dims[i] for i in self._over(x))
        # A dim is unique within a tensor: in a square weight the result's side loses its name.
        taken = {d.name for d in over}
        out = tuple(Dim(None if d.name in taken else d.name, d.size) for d in self.out)
        found = {"weight": ParameterDecl((*over, *out), Init("fan_in", (float(len(over)),)))}
        if self.bias:
            found["bias"] = ParameterDecl(self.out, Init("zeros"))
        return found

    def infer(self, *inputs: TensorType) -> TensorType:
        x = inputs[0]
        return TensorType(promote(t.dtype for t in inputs), (*x.without(self._over(x)).dims, *self.out))

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        x, w, *bias = arrays
        axes = self._over(at.inputs[0])
        y = np.tensordot(x, w, (axes, tuple(range(len(axes)))))
        return y + bias[0] if bias else y

    def equation(self, x: TensorType) -> str:
        """The product as an einsum."""
        letters, axes = _letters(x.rank + len(self.out)), self._over(x)
        own, out = letters[: x.rank], letters[x.rank :]
        summed = "".join(own[i] for i in axes)
        return f"{own},{summed}{out}->{''.join(c for i, c in enumerate(own) if i not in axes)}{out}"

    def gradient(self, b: Builder, node: Node, above: Value) -> Gradients | None:
        equation = self.equation(node.inputs[0].type)
        bias = [lambda: unbroadcast(b, above, node.inputs[2].type)] if self.bias else []
        return [*product_gradients(b, equation, node, above), *bias]

    def cost(self, *inputs: TensorType) -> Cost:
        out = self.infer(*inputs)
        summed = _product(inputs[0].sizes[i] for i in self._over(inputs[0]))
        return Cost(2 * out.elements * summed, out.elements + sum((t.elements for t in inputs), 0))

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats, random_dims

        x = TensorType("f32", random_dims(rng, 4))
        out = (Dim("ff", 3), Dim("w", 2))[: int(rng.integers(1, 3))]
        over = None
        if rng.random() < 0.5:
            over = tuple(x.dims[i] for i in rng.permutation(x.rank)[: int(rng.integers(1, x.rank + 1))])
        op = cls(out, over, bool(rng.random() < 0.5))
        types = [x, *(TensorType(p.dtype, p.dims) for p in op.parameters(x).values())]
        return op, [(t, floats(rng, t)) for t in types]


@register
@dataclass(frozen=True)
class LinearPacked(Op):
    """Several `linear` of one x as one: result i is linear(outs[i], over, bias) of x.

    The weights stay apart, first all of them, then (with `bias`) all biases; a backend lays them side by
    side when it loads or exports them, and makes one product.
    """

    name: ClassVar[str] = "linear_packed"
    family: ClassVar[str] = "linear"
    spelled: ClassVar[bool] = False
    outs: tuple[tuple[Dim, ...], ...]
    over: tuple[Dim, ...] | None = None
    bias: bool = False

    def parts(self) -> tuple[Linear, ...]:
        """The ops that it packs."""
        return tuple(Linear(out, self.over, self.bias) for out in self.outs)

    def groups(self, values: Sequence[T]) -> list[list[T]]:
        """The inputs of each part, of all inputs (or of their types, or arrays)."""
        n = len(self.outs)
        return [[values[0], *values[1 + i :: n]] for i in range(n)]

    def parameters(self, *inputs: TensorType) -> Mapping[str, ParameterDecl]:
        declared = [p.parameters(inputs[0]) for p in self.parts()]
        return {f"{k}_{i}": d[k] for k in declared[0] for i, d in enumerate(declared)}

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        return tuple(p.infer(*group) for p, group in zip(self.parts(), self.groups(inputs)))

    def reference(self, at: At, *arrays: np.ndarray) -> Any:
        types = self.groups(at.inputs)
        return tuple(
            p.reference(At(tuple(t), at.outputs), *group)
            for p, t, group in zip(self.parts(), types, self.groups(arrays))
        )

    def decompose(self, b: Builder, *values: Value) -> Any:
        return tuple(b.emit(p, *group) for p, group in zip(self.parts(), self.groups(values)))

    def cost(self, *inputs: TensorType) -> Cost:
        costs = [p.cost(*group) for p, group in zip(self.parts(), self.groups(inputs))]
        shared = (len(costs) - 1) * inputs[0].elements
        return Cost(sum((c.flops for c in costs), 0), sum((c.elements for c in costs), 0) - shared)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats, random_dims

        x = TensorType("f32", random_dims(rng, 3))
        outs = ((Dim("ff", 3),), (Dim("ff", 3), Dim("w", 2)), (Dim("w", 4),))[: int(rng.integers(1, 4))]
        op = cls(outs, x.dims[-1:] if rng.random() < 0.5 else None, bool(rng.random() < 0.5))
        types = [x, *(TensorType(p.dtype, p.dims) for p in op.parameters(x).values())]
        return op, [(t, floats(rng, t)) for t in types]


@register
@dataclass(frozen=True)
class Embed(Op):
    """y[.., d] = table[x[..], d]: row x of a table [vocab, d], for integers 0 <= x < vocab."""

    name: ClassVar[str] = "embed"
    family: ClassVar[str] = "linear"
    tensors: ClassVar[tuple[str, ...]] = ("x", "table")

    def infer(self, *inputs: TensorType) -> TensorType:
        x, table = inputs
        if x.dtype not in ("i32", "i64"):
            raise TypeMismatch(f"`embed` looks up integers, its input is {x}", code="PF0301")
        if table.rank < 2:
            raise TypeMismatch(f"`embed` needs a table [vocab, d], not {table}")
        return TensorType(table.dtype, (*x.dims, *table.dims[1:]))

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        x, table = arrays
        return table[x]

    def gradient(self, b: Builder, node: Node, above: Value) -> Gradients | None:
        x, table = node.inputs
        return [None, lambda: b.emit(Put(0, table.type.dims), above, x)]

    def cost(self, *inputs: TensorType) -> Cost:
        return Cost(0, 2 * self.infer(*inputs).elements)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats, integers

        x = TensorType("i32", (Dim("batch", 2), Dim("time", int(rng.integers(1, 6)))))
        table = TensorType("f32", (Dim("vocab", 7), Dim("d", int(rng.integers(1, 5)))))
        return cls(), [(x, integers(rng, x, 0, 7)), (table, floats(rng, table))]


@register
@dataclass(frozen=True)
class Contract(Op):
    """sum over `over` of x * y, by name: dims that both have and that are not summed are batch dims.

    The result has x's remaining dims, then those only y has.
    """

    name: ClassVar[str] = "contract"
    family: ClassVar[str] = "linear"
    tensors: ClassVar[tuple[str, ...]] = ("x", "y")
    over: tuple[Dim, ...]

    def infer(self, *inputs: TensorType) -> TensorType:
        x, y = inputs
        gone = {d.name for d in self.over}
        for d in self.over:
            for t in inputs:
                axis = t.axis(d.name) if d.name else None
                if axis is None or t.dims[axis].size != d.size:
                    raise TypeMismatch(f"`contract` sums over `{d}`, which {t} does not have")
        for d in x.dims:
            axis = y.axis(d.name) if d.name else None
            if axis is not None and y.dims[axis].size != d.size:
                raise TypeMismatch(f"dim `{d.name}` is {d.size} and {y.dims[axis].size}", code="PF0312")
        own = tuple(d for d in y.dims if d.name not in x.names and d.name not in gone)
        kept = tuple(d for d in x.dims if d.name not in gone)
        return TensorType(promote(t.dtype for t in inputs), (*kept, *own))

    def equation(self, *inputs: TensorType) -> str:
        """The same as an einsum equation."""
        letters: dict[str | None, str] = {}
        for t in inputs:
            for d in t.dims:
                letters.setdefault(d.name, chr(ord("a") + len(letters)))
        terms = ["".join(letters[n] for n in t.names) for t in (*inputs, self.infer(*inputs))]
        return f"{terms[0]},{terms[1]}->{terms[2]}"

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        return np.einsum(self.equation(*at.inputs), *arrays)

    def gradient(self, b: Builder, node: Node, above: Value) -> Gradients | None:
        return product_gradients(b, self.equation(*(v.type for v in node.inputs)), node, above)

    def cost(self, *inputs: TensorType) -> Cost:
        out = self.infer(*inputs)
        summed = _product(d.size for d in self.over)
        return Cost(2 * out.elements * summed, out.elements + sum((t.elements for t in inputs), 0))

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats

        dims = [Dim("batch", 2), Dim("time", 3), Dim("d", 4), Dim("features", 2)]
        x = TensorType("f32", tuple(dims[i] for i in rng.permutation(4)[:3]))
        shared = [d for d in x.dims if rng.random() < 0.7] or [x.dims[0]]
        y = TensorType("f32", (*shared, Dim("rows", 3)))
        op = cls(tuple(shared[: int(rng.integers(1, len(shared) + 1))]))
        return op, [(t, floats(rng, t)) for t in (x, y)]


@register
@dataclass(frozen=True)
class Unembed(Op):
    """logits[.., vocab] = sum over d of x[.., d] table[vocab, d]: the transposed embedding."""

    name: ClassVar[str] = "unembed"
    family: ClassVar[str] = "linear"
    tensors: ClassVar[tuple[str, ...]] = ("x", "table")

    def infer(self, *inputs: TensorType) -> TensorType:
        x, table = inputs
        if table.rank != 2 or not x.rank or x.dims[-1] != table.dims[1]:
            raise TypeMismatch(f"`unembed` needs a table [vocab, {x.dims[-1] if x.rank else 'd'}], not {table}")
        return TensorType(promote(t.dtype for t in inputs), (*x.dims[:-1], table.dims[0]))

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        x, table = arrays
        return x @ table.T

    def gradient(self, b: Builder, node: Node, above: Value) -> Gradients | None:
        rows = _letters(node.inputs[0].type.rank - 1)
        return product_gradients(b, f"{rows}y,zy->{rows}z", node, above)

    def cost(self, *inputs: TensorType) -> Cost:
        out = self.infer(*inputs)
        return Cost(2 * out.elements * inputs[0].sizes[-1], out.elements + sum((t.elements for t in inputs), 0))

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats

        x = TensorType("f32", (Dim("batch", 2), Dim("time", int(rng.integers(1, 5))), Dim("d", 4)))
        table = TensorType("f32", (Dim("vocab", 7), Dim("d", 4)))
        return cls(), [(t, floats(rng, t)) for t in (x, table)]
