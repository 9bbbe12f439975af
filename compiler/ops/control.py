"""Repetition: a stack of equal layers is one region with stacked parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from ..ir import Graph, Value, stacked_dim
from ..types import TensorType
from .contract import Cost, Op, register

T = TypeVar("T")


@register
@dataclass(frozen=True)
class Repeat(Op):
    """Runs its region `count` times.

    Inputs: `carries` values that each run takes from the one before and hands to the next, `stacks` values
    of which run i gets slice i of the leading dim, then loop invariants. The region returns the carries,
    then values that are stacked into outputs with a leading dim of `count`. With `reverse` the last slice comes
    first. `remat` asks backends that differentiate it to compute a run again rather than keep what it made.
    """

    name: ClassVar[str] = "repeat"
    family: ClassVar[str] = "control"
    tensors: ClassVar[tuple[str, ...]] = ()
    spelled: ClassVar[bool] = False
    count: int
    carries: int
    stacks: int
    reverse: bool = False
    remat: bool = False

    def order(self) -> Sequence[int]:
        """Which slice each run gets."""
        return range(self.count)[::-1] if self.reverse else range(self.count)

    def in_order(self, made: Sequence[T]) -> Sequence[T]:
        """What the runs made, one after another, in the order of slices."""
        return made[::-1] if self.reverse else made

    def infer_region(self, region: Graph, inputs: Sequence[Value]) -> tuple[TensorType, ...]:
        """Types of the results. Raises: AssertionError where region and inputs don't fit."""
        lead = stacked_dim(self.count)
        want = [v.type for v in inputs[: self.carries]]
        for v in inputs[self.carries : self.carries + self.stacks]:
            assert v.type.dims[0] == lead, f"%{v.name} is no stack of {self.count}"
            want.append(v.type.without([0]))
        want += [v.type for v in inputs[self.carries + self.stacks :]]
        assert want == [v.type for v in region.inputs], f"region {region.name} takes other types"
        outs = [v.type for v in region.outputs.values()]
        assert outs[: self.carries] == want[: self.carries], f"region {region.name} changes a carry's type"
        stacked = [t.with_dims((lead, *t.dims)) for t in outs[self.carries :]]
        return (*outs[: self.carries], *stacked)

    def cost(self, *inputs: TensorType) -> Cost:
        return Cost(0, 0)  # the region's nodes are counted instead

    @classmethod
    def draw(cls, rng: Any) -> tuple[Op, list[Any]]:
        raise NotImplementedError("a repetition needs a region; tests/compiler/test_repeat.py has its own")
