"""Changes of shape, in the notation of einops (Rogozhnikov, ICLR 2022)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..ir import Builder, Node, Value
from ..size import Size, divide
from ..types import Dim, TensorType, TypeMismatch
from .broadcast import renamed
from .contract import At, Cost, Gradients, Op, register

_ITEM = re.compile(r"\(([^()]*)\)|([A-Za-z_]\w*|1)|(\S)")


def parse_pattern(pattern: str) -> tuple[list[list[str]], list[list[str]]]:
    """Both sides of `"b t (h d) -> b h t d"` as groups of names; `1` is an empty group.

    Raises: TypeMismatch where it is no such pattern.
    """
    sides = pattern.split("->")
    if len(sides) != 2:
        raise TypeMismatch(f'"{pattern}" is no shape pattern', code="PF0316", help='as in "b t (h d) -> b h t d"')
    out = []
    for side in sides:
        groups: list[list[str]] = []
        for group, name, bad in _ITEM.findall(side):
            if bad:
                raise TypeMismatch(f'"{bad}" has no place in a shape pattern', code="PF0316")
            groups.append(group.split() if not name else [] if name == "1" else [name])
        flat = [n for g in groups for n in g]
        if len(set(flat)) != len(flat):
            raise TypeMismatch(f'a name occurs twice in "{side.strip()}"', code="PF0316")
        out.append(groups)
    if sorted(n for g in out[0] for n in g) != sorted(n for g in out[1] for n in g):
        raise TypeMismatch(f'both sides of "{pattern}" must hold the same names', code="PF0316")
    return out[0], out[1]


def _written(groups: list[list[str]]) -> str:
    return " ".join(g[0] if len(g) == 1 else f"({' '.join(g)})" if g else "1" for g in groups)


@register
@dataclass(frozen=True)
class Rearrange(Op):
    """x with axes split, merged and permuted by a pattern, e.g. "b t (h d) -> b h t d".

    Names that are dims of the spec (`sizes`) have their sizes; of the others at most one in a group is
    open. A name that stands alone on both sides keeps the name of x's dim; a merged group is unnamed.
    """

    name: ClassVar[str] = "rearrange"
    family: ClassVar[str] = "shape"
    pattern: str
    sizes: tuple[Dim, ...] = ()

    def plan(self, x: TensorType) -> tuple[list[Dim], list[int], list[Dim]]:
        """(dims after splitting, their order, dims after merging). Raises: TypeMismatch."""
        left, right = parse_pattern(self.pattern)
        if len(left) != x.rank:
            raise TypeMismatch(f'"{self.pattern}" takes {len(left)} axes, {x} has {x.rank}', code="PF0316")
        known = {d.name: d for d in self.sizes}
        names: list[str] = []
        split: list[Dim] = []
        for group, d in zip(left, x.dims):
            if len(group) == 1:
                named = known.get(group[0])
                if named and named.size != d.size:
                    raise TypeMismatch(f"`{named.name}` is {named.size}, that axis of {x} has {d.size}", code="PF0312")
                split.append(named or d)
                names.append(group[0])
                continue
            rest: Size | None = d.size
            for n in group:
                rest = divide(rest, known[n].size) if n in known and rest is not None else rest
            unknown = [n for n in group if n not in known]
            if rest is None or len(unknown) > 1 or (not unknown and rest != 1):
                raise TypeMismatch(
                    f'can\'t split {d} as "({" ".join(group)})"',
                    code="PF0316",
                    help="all names of a group but one must be dims, and divide the size",
                )
            split += [known.get(n) or Dim(n, rest) for n in group]
            names += group
        order = [names.index(n) for g in right for n in g]
        merged = []
        for g in right:
            if len(g) == 1:
                merged.append(split[names.index(g[0])])
            else:
                size: Size = 1
                for part in g:
                    size = size * split[names.index(part)].size
                merged.append(Dim(None, size))
        return split, order, merged

    def infer(self, *inputs: TensorType) -> TensorType:
        return inputs[0].with_dims(self.plan(inputs[0])[2])

    def reference(self, at: At, *arrays: np.ndarray) -> np.ndarray:
        split, order, _ = self.plan(at.inputs[0])
        shape = at.inputs[0].with_dims(split).shape({})
        return arrays[0].reshape(shape).transpose(order).reshape(at.outputs[0].shape({}))

    def gradient(self, b: Builder, node: Node, above: Value) -> Gradients | None:
        def back() -> Value:
            t = node.inputs[0].type
            left, right = parse_pattern(self.pattern)
            split, _, _ = self.plan(t)
            sizes = tuple(Dim(n, d.size) for n, d in zip((n for g in left for n in g), split))
            x = b.emit(Rearrange(f"{_written(right)} -> {_written(left)}", sizes), above)
            # Dims that were merged or renamed get their names back.
            return renamed(b, x, t.dims)

        return [back]

    def cost(self, *inputs: TensorType) -> Cost:
        return Cost(0, 2 * inputs[0].elements)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        from .sampling import floats

        pattern, sizes = [
            ("b t (h d) -> b h t d", (Dim("h", 2),)),
            ("b h w -> b (w h)", ()),
            ("a (b c) d -> (a c) (d b)", (Dim("c", 3),)),
        ][int(rng.integers(3))]
        x = TensorType("f32", (Dim("batch", 2), Dim("time", 6), Dim("d", 6)))
        return cls(pattern, sizes), [(x, floats(rng, x))]
