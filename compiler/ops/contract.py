"""What an op is: one class that holds everything there is to know about it.

A node of the IR holds an instance; its dataclass fields are the op's attributes. To add an op, subclass
`Op` in the file of its family (or in a package of your own, see README.md) and decorate it with `@register`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar

import numpy as np

from ..ir import Builder, Init, Node, Value
from ..size import Size, substitute
from ..types import Dim, TensorType


@dataclass(frozen=True)
class At:
    """The concrete types around one execution of an op by the reference."""

    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]


@dataclass(frozen=True)
class ParameterDecl:
    """A parameter or buffer that an op owns: dims (without stacks), initial values, dtype."""

    dims: tuple[Dim, ...]
    init: Init
    dtype: str = "f32"


@dataclass(frozen=True)
class StateDecl:
    """Streaming state of an op: its type for one layer; it starts as zeros."""

    name: str
    type: TensorType


@dataclass(frozen=True)
class Reach:
    """How far along the sequence axis an output depends on inputs: `back` positions before its own and
    `ahead` after; None means without bound."""

    back: int | None = 0
    ahead: int | None = 0


POINTWISE = Reach(0, 0)

Gradients = Sequence[Callable[[], Value] | None]
"""For each input what emits the gradient with respect to it; None where nothing flows."""


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of one evaluation, and the elements it must read and write."""

    flops: Size
    elements: Size


@dataclass(frozen=True)
class Op:
    """The contract. Class attributes and methods that a subclass gives:

    name        the op's name in specs and in the IR
    tensors     its tensor inputs in order; the first is what `>>` supplies; `?` marks an optional one
    infer       types of the results from those of the inputs (parameters included)
    reference   the meaning, in plain NumPy float64
    Optional:
    parameters  tensors that every use of the op owns, appended to its inputs in order
    buffers     tensors that every use of the op keeps from step to step, appended after the parameters
    training    its counterpart in training, where it has buffers
    reads       implicit inputs, appended after these: `position`, `document`, or a draw (`uniform`,
                `normal`) of the first input's shape
    decompose   the op in simpler ops, for backends that have no rule of their own
    each        the same reduction for each entry of one dim, for ops that reduce all
    gradient    what flows back to its inputs, for ops of the differentiable core; the others have that of `decompose`
    reach       dependence along the sequence axis (pointwise if not given)
    streaming   its counterpart with state, and what state that is
    cost        FLOPs and traffic (elementwise if not given)
    mistakes    wrong versions of a use, those that ports of the op have been seen to be
    draw        a random legal use, for the registry's property tests
    """

    name: ClassVar[str]
    tensors: ClassVar[tuple[str, ...]] = ("x",)
    family: ClassVar[str] = ""
    source: ClassVar[str] = ""
    training_only: ClassVar[bool] = False  # has no use at inference (losses)
    kept: ClassVar[int] = 0  # how many of its last results are new values of buffers
    trains_only: ClassVar[bool] = False  # acts in training; at inference its first input passes unchanged
    spelled: ClassVar[bool] = True  # may be written in a spec
    mixes_last: ClassVar[int] = 0  # a result depends on all of so many last dims of the first input

    def infer(self, *inputs: TensorType) -> TensorType | tuple[TensorType, ...]:
        raise NotImplementedError

    def reference(self, at: At, *arrays: np.ndarray) -> Any:
        raise NotImplementedError

    def parameters(self, *inputs: TensorType) -> Mapping[str, ParameterDecl]:
        return {}

    @property
    def once(self) -> bool:
        """Whether a loss changes its buffers once: all evaluations start from what they were before it."""
        return False

    def buffers(self, *inputs: TensorType) -> Mapping[str, ParameterDecl]:
        return {}

    def training(self) -> Op:
        """The op of a training graph, for ops with buffers: it takes what this one takes and returns the result, then
        the buffers' new values (`kept`)."""
        raise NotImplementedError(f"`{self.name}` keeps no buffers")

    def reads(self) -> tuple[str, ...]:
        return ()

    def decompose(self, b: Builder, *values: Value) -> Any:
        """Returns the result value(s), or None where the op is part of the core."""
        return None

    def each(self, dim: str, *inputs: TensorType) -> Op:
        """The op that reduces as this one does, but separately for each entry of `dim`: for inner losses. The op itself
        where it keeps that dim anyway."""
        return self

    def gradient(self, b: Builder, node: Node, above: Value) -> Gradients | None:
        """From the gradient `above` with respect to the one result of a node of this op those with respect to its
        inputs, each of its input's type. None where the op has no rule of its own (compiler/gradient.py)."""
        return None

    def reach(self) -> Reach:
        return POINTWISE

    def streaming(self, *inputs: TensorType) -> tuple[Op, tuple[StateDecl, ...]] | None:
        """(the op with state, its states). The op with state takes the inputs, then the states, then the
        stream's `length` so far and `count` of new entries (both int32[batch]); it returns the results,
        then the new states. None where nothing is kept."""
        return None

    def cost(self, *inputs: TensorType) -> Cost:
        out = self.infer(*inputs)
        outs = (out,) if isinstance(out, TensorType) else out
        total: Size = 0
        for t in (*inputs, *outs):
            total = total + t.elements
        return Cost(sum((t.elements for t in outs), 0), total)

    def mistakes(self, *inputs: TensorType) -> Mapping[str, Op | Callable[..., Value]]:
        """What ports get wrong, by name: another op for the same inputs, or a function of a builder and the
        inputs. `verify --mutate` puts each into a model and must notice it. What follows from any graph (the
        op left out, layers in the wrong order) is in mistakes.py."""
        return {}

    @classmethod
    def draw(cls, rng: np.random.Generator) -> tuple[Op, list[Any]]:
        """(an instance, its inputs): arrays paired with types, `(TensorType, ndarray)`."""
        raise NotImplementedError(f"{cls.__name__} draws no examples")

    def attributes(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def bind(self, env: Mapping[str, Size]) -> Op:
        """The op with symbolic sizes in its attributes replaced."""

        def one(v: Any) -> Any:
            if isinstance(v, Dim):
                return Dim(v.name, substitute(v.size, env))
            if isinstance(v, TensorType):
                return v.bind(env)
            return tuple(one(i) for i in v) if isinstance(v, tuple) else v

        return replace(self, **{k: one(v) for k, v in self.attributes().items()})


OPS: dict[str, type[Op]] = {}
T = TypeVar("T", bound=type[Op])


def register(cls: T) -> T:
    """Adds an op to the registry. Raises: ValueError when the name is taken."""
    if cls.name in OPS:
        raise ValueError(f"op `{cls.name}` is already registered by {OPS[cls.name].__module__}")
    OPS[cls.name] = cls
    return cls


_loaded = False


def load_extensions() -> None:
    """Imports people's own ops: entry points of the group `planform.ops`, once."""
    global _loaded
    if not _loaded:
        _loaded = True
        for point in entry_points(group="planform.ops"):
            point.load()
