"""Products by axis instead of by name: what gradients of products are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..ir import Builder, Node, Value
from ..size import Size
from ..types import Dim, TensorType, TypeMismatch, promote
from .contract import At, Cost, Gradients, Op, register


@register
@dataclass(frozen=True)
class Einsum(Op):
    """sum of x * y by axis, as NumPy's einsum of `equation` ("ab,cb->ac"); `dims` are those of the result.

    Constraint C1: a letter occurs once at most in each of the three and at least in two of them, so that the
    gradients are products of the same kind.
    """

    name: ClassVar[str] = "einsum"
    family: ClassVar[str] = "linear"
    tensors: ClassVar[tuple[str, ...]] = ("x", "y")
    spelled: ClassVar[bool] = False
    equation: str
    dims: tuple[Dim, ...]

    def terms(self) -> tuple[str, str, str]:
        """The letters of x, of y, and of the result."""
        operands, _, result = self.equation.partition("->")
        left, _, right = operands.partition(",")
        return left, right, result

    def infer(self, *inputs: TensorType) -> TensorType:
        dims = (inputs[0].dims, inputs[1].dims, self.dims)
        sizes: dict[str, Size] = {}
        seen: dict[str, int] = {}
        for letters, mine in zip(self.terms(), dims):
            if len(letters) != len(mine) or len(set(letters)) != len(letters):
                raise TypeMismatch(f'`einsum`: "{letters}" are not the axes [{", ".join(map(str, mine))}]')
            for c, d in zip(letters, mine):
                seen[c] = seen.get(c, 0) + 1
                if sizes.setdefault(c, d.size) != d.size:
                    raise TypeMismatch(f"`einsum`: {c} is {sizes[c]} and {d.size}", code="PF0312")
        if min(seen.values(), default=2) < 2:
            raise TypeMismatch(f'`einsum`: each letter of "{self.equation}" must stand in two of its three terms')
        return TensorType(promote(t.dtype for t in inputs), self.dims)

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        return np.einsum(self.equation, *arrays)

    def gradient(self, b: Builder, node: Node, above: Value) -> Gradients | None:
        return product_gradients(b, self.equation, node, above)

    def cost(self, *inputs: TensorType) -> Cost:
        out = self.infer(*inputs)
        sizes = {c: d.size for letters, t in zip(self.terms(), inputs) for c, d in zip(letters, t.dims)}
        work: Size = 2
        for s in sizes.values():
            work = work * s
        return Cost(work, out.elements + sum((t.elements for t in inputs), 0))

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats

        sizes = {c: int(rng.integers(1, 5)) for c in "abcdef"}
        terms: list[list[str]] = [[], [], []]
        for c in sizes:
            for i in rng.permutation(3)[: int(rng.integers(2, 4))]:
                terms[i].append(c)
        x, y, z = ("".join(rng.permutation(t)) if t else "" for t in terms)
        types = [TensorType("f32", tuple(Dim(None, sizes[c]) for c in t)) for t in (x, y)]
        return cls(f"{x},{y}->{z}", tuple(Dim(None, sizes[c]) for c in z)), [(t, floats(rng, t)) for t in types]


def product_gradients(b: Builder, equation: str, node: Node, above: Value) -> Gradients:
    """What flows back to the two factors of a node that is the einsum of its first two inputs.

    A letter of one factor alone, summed away with no partner, is C1's to forbid.
    """
    x, y, z = Einsum(equation, ()).terms()
    first, second = node.inputs[:2]
    return [
        lambda: b.emit(Einsum(f"{z},{y}->{x}", first.type.dims), above, second),
        lambda: b.emit(Einsum(f"{x},{z}->{y}", second.type.dims), first, above),
    ]
