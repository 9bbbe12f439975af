"""The four kinds of value that expressions have: number, dim, tensor, block.

Numbers are Python numbers, sizes, strings, booleans, None and lists; dims are `Dim`; tensors are IR values.
Blocks are the classes here: templates that the elaborator applies to a tensor, with fresh parameters each
time. A block carries the scope it was written in, so that names mean what they meant there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from planform.spec import BlockDef, Span

from .ir import Init, Value
from .ops.contract import Op
from .size import Polynomial
from .types import Dim


@dataclass(frozen=True, eq=False)
class Block:
    """Base of all blocks; `span` is where it was written."""

    span: Span = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class Identity(Block):
    """`id`."""


@dataclass(frozen=True, eq=False)
class Constant(Block):
    """A number or tensor where a block is wanted: whatever comes in, this comes out."""

    value: Any


@dataclass(frozen=True, eq=False)
class Pipe(Block):
    """`first >> then`."""

    first: Block
    then: Block


@dataclass(frozen=True, eq=False)
class Arithmetic(Block):
    """`left op right`, elementwise on the two results for the same input."""

    operator: str
    left: Block
    right: Block


@dataclass(frozen=True, eq=False)
class Negated(Block):
    operand: Block


@dataclass(frozen=True, eq=False)
class Repeated(Block):
    """`body ^ count`, or `cycle(bodies, count)`: layer i is bodies[i mod len(bodies)]."""

    bodies: tuple[Block, ...]
    count: int


@dataclass(frozen=True, eq=False)
class Named(Block):
    """A block with a path element of its own: a body's `name = block`, or `name=` on a call."""

    name: str
    body: Block


@dataclass(frozen=True, eq=False)
class OpUse(Block):
    """An op with its attributes, awaiting its input; `tensors` are the tensor arguments by name (blocks
    among them get the input), `primary` is the parameter that `>>` supplies (None: all are given). Of the first tensor
    that it owns `init` says how it starts, and `weight` is a block that it goes through."""

    cls: type[Op]
    attributes: Mapping[str, Any]
    tensors: Mapping[str, Any]
    primary: str | None
    init: Init | None = None
    weight: Block | None = None


@dataclass(frozen=True, eq=False)
class Composite(Block):
    """A block of the spec or the prelude with its arguments."""

    definition: BlockDef
    arguments: Mapping[str, Any]
    places: Mapping[str, Span] = field(default_factory=dict)  # where each argument was written


@dataclass(frozen=True, eq=False)
class GraphUse(Block):
    """A graph as a block: its one input is what comes in, its one output what goes out. `of` is the used
    spec or the slow copy that it belongs to, None for this model."""

    graph: str
    of: str | None = None


@dataclass(frozen=True)
class Outputs:
    """What a graph call gives: tensors by name. A single one also stands for itself."""

    graph: str
    values: dict[str, Value]


def kind(value: Any) -> str:
    """The kind of a value, in the words of error messages."""
    if isinstance(value, Value):
        return "tensor"
    if isinstance(value, Dim):
        return "dim"
    if isinstance(value, Block):
        return "block"
    if isinstance(value, Outputs):
        return "outputs of a graph"
    if isinstance(value, bool):
        return "boolean"
    if value is None:
        return "none"
    if isinstance(value, str):
        return "string"
    if isinstance(value, (list, tuple)):
        return "list"
    return "number"


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Polynomial)) and not isinstance(value, bool)


def describe(value: Any) -> str:
    """A value as an error message shows it."""
    if isinstance(value, Value):
        return f"the tensor {value.type}"
    if isinstance(value, Dim):
        return f"the dim {value}"
    if isinstance(value, Block):
        return "a block"
    if isinstance(value, Outputs):
        return f"the outputs of graph `{value.graph}`"
    if isinstance(value, Init):
        return f"the initialisation {value}"
    if isinstance(value, str):
        return f'the string "{value}"'
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return "a list"
    return f"the number {value}"
