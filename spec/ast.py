"""The block algebra as a tree. Every node knows its span; equality ignores it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from .source import Span


@dataclass(frozen=True)
class Expr:
    """Base of all expressions."""

    span: Span = field(compare=False, repr=False, kw_only=True)

    def children(self) -> Iterator[Expr]:
        for f in fields(self):
            value = getattr(self, f.name)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Expr):
                    yield item
                elif isinstance(item, Argument):
                    yield item.value

    def walk(self) -> Iterator[Expr]:
        yield self
        for child in self.children():
            yield from child.walk()


@dataclass(frozen=True)
class Number(Expr):
    value: int | float


@dataclass(frozen=True)
class String(Expr):
    value: str


@dataclass(frozen=True)
class Constant(Expr):
    """`true`, `false` or `none`."""

    value: bool | None


@dataclass(frozen=True)
class Name(Expr):
    """A dim, tensor, block, op or graph, found by lexical scope. `in` and `id` are names too."""

    name: str


@dataclass(frozen=True)
class ListExpr(Expr):
    items: tuple[Expr, ...]


@dataclass(frozen=True)
class Argument:
    value: Expr
    name: str | None = None
    name_span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Call(Expr):
    function: Expr
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class Attribute(Expr):
    """`value.name`, the output `name` of a graph call."""

    value: Expr
    name: str
    name_span: Span = field(compare=False, repr=False, kw_only=True)


@dataclass(frozen=True)
class Binary(Expr):
    """`left operator right`; operator is one of `>> + - * / // ^`."""

    operator: str
    left: Expr
    right: Expr
    operator_span: Span = field(compare=False, repr=False, kw_only=True)


@dataclass(frozen=True)
class Negate(Expr):
    operand: Expr


@dataclass(frozen=True)
class Statement:
    """`name = value`; `name` is None for a body's bare last expression."""

    name: str | None
    value: Expr
    name_span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Body:
    statements: tuple[Statement, ...]
    span: Span = field(compare=False, repr=False)
