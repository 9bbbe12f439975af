"""Parsing the block algebra out of the raw slice of a file, so that every span indexes the file itself."""

from __future__ import annotations

import dataclasses
import math
import re
from functools import lru_cache
from importlib import resources
from typing import Any

from lark import Lark, Token, Transformer_NonRecursive
from lark.exceptions import UnexpectedInput, VisitError

from .ast import (
    Argument,
    Attribute,
    Binary,
    Body,
    Call,
    Constant,
    Expr,
    ListExpr,
    Name,
    Negate,
    Number,
    Statement,
    String,
)
from .diagnostics import Diagnostic, SpecError
from .model import Parameter, TensorDecl
from .source import Source, Span
from .syntax_errors import bracket_fault, explain

MAX_DEPTH = 128
"""Levels of calls, brackets and operators in one expression: walks of the tree avoid Python's stack limit."""

LARGEST = 2**40
"""The largest whole number a spec may hold; a bigger one is a slip."""

CONSTANTS = {"true": True, "false": False, "none": None}

RESERVED = frozenset({*CONSTANTS, "in", "id"})
"""Names with a fixed meaning, which nothing may redefine."""


def parse_body(source: Source, start: int = 0, end: int | None = None) -> Body:
    """`name = expr` statements and at most one bare last expression.

    Raises: SpecError (PF011x) at the exact place.
    """
    body: Body = _parse("body", source, start, end)
    _check_statements(body)
    return body


def parse_expression(source: Source, start: int = 0, end: int | None = None) -> Expr:
    """One expression. Raises: SpecError (PF011x)."""
    body = parse_body(source, start, end)
    first = body.statements[0]
    if first.name is not None:
        raise SpecError(
            Diagnostic(
                "PF0117",
                "a definition can't stand here",
                first.name_span,
                "one expression was expected",
                help=f"write the value alone, without `{first.name} =`",
            )
        )
    return first.value


def parse_tensor(source: Source, start: int = 0, end: int | None = None) -> TensorDecl:
    """`int[batch, time]`. Raises: SpecError (PF011x)."""
    decl: TensorDecl = _parse("tensor", source, start, end)
    return decl


def parse_signature(source: Source, start: int, end: int) -> tuple[str, Span, tuple[Parameter, ...]]:
    """`attend(window, bias=false)` as (name, its place, parameters). Raises: SpecError (PF011x)."""
    parsed: tuple[str, Span, tuple[Parameter, ...]] = _parse("signature", source, start, end)
    return parsed


def _parse(rule: str, source: Source, start: int, end: int | None) -> Any:
    end = len(source.text) if end is None else end
    text = source.text[start:end]
    if not re.sub(r"#[^\n]*", "", text).strip():
        raise SpecError(
            Diagnostic("PF0110", "an expression is missing", Span(source, start, end), "nothing stands here")
        )
    fault = bracket_fault(source, start, end, MAX_DEPTH)
    try:
        tree = _parser().parse(text, start=rule)
    except UnexpectedInput as error:
        raise SpecError(explain(rule, source, start, end, error, fault)) from None
    try:
        return _Builder(source, start, end).transform(tree)
    except VisitError as error:
        if isinstance(error.orig_exc, SpecError):
            raise error.orig_exc from None
        raise


@lru_cache(maxsize=1)
def _parser() -> Lark:
    grammar = (resources.files(__package__) / "expressions.lark").read_text(encoding="utf-8")
    return Lark(
        grammar,
        parser="lalr",
        lexer="basic",
        start=["body", "tensor", "signature"],
        keep_all_tokens=True,
        maybe_placeholders=False,
    )


class _Builder(Transformer_NonRecursive):  # type: ignore[type-arg]
    """Lark's tree to ours, bottom up, without recursion; a method gets tokens and built nodes."""

    def __init__(self, source: Source, start: int, end: int) -> None:
        super().__init__()
        self.source, self.start, self.end = source, start, end
        self.depth: dict[int, int] = {}  # by id; nodes stay alive in the tree under construction
        self.alive: list[Expr] = []

    def _span(self, children: list[Any]) -> Span:
        return Span(self.source, self._token_or_node(children[0]).start, self._token_or_node(children[-1]).end)

    def _token_or_node(self, item: Any) -> Span:
        if isinstance(item, Token):
            assert item.start_pos is not None and item.end_pos is not None
            return Span(self.source, self.start + item.start_pos, self.start + item.end_pos)
        if isinstance(item, Argument):
            return item.name_span or item.value.span
        span: Span = item.span
        return span

    def _made(self, node: Expr) -> Expr:
        depth = 1 + max((self.depth[id(c)] for c in node.children()), default=0)
        if depth > MAX_DEPTH:
            raise SpecError(
                Diagnostic(
                    "PF0116",
                    f"this expression is nested more than {MAX_DEPTH} levels deep",
                    Span(self.source, node.span.start, node.span.start + 1),
                    "the expression that starts here",
                    help="name parts of it: `part = ...` in a body, or a block of its own",
                )
            )
        self.depth[id(node)] = depth
        self.alive.append(node)
        return node

    def number(self, children: list[Any]) -> Expr:
        token, span = str(children[0]), self._span(children)
        whole = token.isdigit()
        # The length is tested first: Python refuses to read whole numbers of thousands of digits.
        value: int | float = int(token) if whole and len(token) < 20 else float(token)
        if (whole and value > LARGEST) or not math.isfinite(value):
            raise SpecError(too_large(span))
        return self._made(Number(value, span=span))

    def string(self, children: list[Any]) -> Expr:
        return self._made(String(str(children[0])[1:-1], span=self._span(children)))

    def name(self, children: list[Any]) -> Expr:
        word, span = str(children[0]), self._span(children)
        if word in CONSTANTS:
            return self._made(Constant(CONSTANTS[word], span=span))
        return self._made(Name(word, span=span))

    def list_expr(self, children: list[Any]) -> Expr:
        items = tuple(c for c in children if isinstance(c, Expr))
        return self._made(ListExpr(items, span=self._span(children)))

    def group(self, children: list[Any]) -> Expr:
        # The span takes the brackets in, so that a caret under the whole is well formed.
        return self._made(dataclasses.replace(children[1], span=self._span(children)))

    def argument(self, children: list[Any]) -> Argument:
        if len(children) == 1:
            return Argument(children[0])
        return Argument(children[2], str(children[0]), self._token_or_node(children[0]))

    def call(self, children: list[Any]) -> Expr:
        function, bracket = children[0], self._token_or_node(children[1])
        if self.source.text.find("\n", function.span.end, bracket.start) >= 0:
            raise SpecError(
                Diagnostic(
                    "PF0118",
                    "a bracket that opens a line would call the expression before it",
                    bracket,
                    "this reads as a call",
                    help="put the call's `(` on its function's line, or name this value: `result = (...)`",
                )
            )
        arguments = tuple(c for c in children if isinstance(c, Argument))
        seen: dict[str, Span | None] = {}
        for before, argument in zip((None, *arguments), arguments):
            if argument.name is None and before is not None and before.name is not None:
                raise SpecError(
                    Diagnostic(
                        "PF0119",
                        "an argument by position can't follow one by name",
                        argument.value.span,
                        help=f"give it a name too, or move it before `{before.name}=`",
                    )
                )
            if argument.name in seen and argument.name is not None:
                raise SpecError(Diagnostic("PF0119", f"argument `{argument.name}` is given twice", argument.name_span))
            if argument.name is not None:
                seen[argument.name] = argument.name_span
        return self._made(Call(function, arguments, span=self._span(children)))

    def attribute(self, children: list[Any]) -> Expr:
        name = children[2]
        node = Attribute(children[0], str(name), span=self._span(children), name_span=self._token_or_node(name))
        return self._made(node)

    def binary(self, children: list[Any]) -> Expr:
        left, operator, right = children
        place = self._token_or_node(operator)
        return self._made(Binary(str(operator), left, right, span=self._span(children), operator_span=place))

    def negate(self, children: list[Any]) -> Expr:
        return self._made(Negate(children[1], span=self._span(children)))

    def definition(self, children: list[Any]) -> Statement:
        name, _, value = children
        self._refuse_constant(name)
        return Statement(str(name), value, self._token_or_node(name))

    def bare(self, children: list[Any]) -> Statement:
        return Statement(None, children[0])

    def body(self, children: list[Any]) -> Body:
        return Body(tuple(children), Span(self.source, self.start, self.end))

    def tensor(self, children: list[Any]) -> TensorDecl:
        dims = tuple(c for c in children if isinstance(c, Expr))
        return TensorDecl(str(children[0]), dims, self._span(children))

    def parameter(self, children: list[Any]) -> Parameter:
        self._refuse_constant(children[0])
        default = children[2] if len(children) == 3 else None
        return Parameter(str(children[0]), default, self._token_or_node(children[0]))

    def signature(self, children: list[Any]) -> tuple[str, Span, tuple[Parameter, ...]]:
        self._refuse_constant(children[0])
        parameters = tuple(c for c in children if isinstance(c, Parameter))
        for i, parameter in enumerate(parameters):
            before = parameters[:i]
            if any(p.name == parameter.name for p in before):
                raise SpecError(Diagnostic("PF0119", f"parameter `{parameter.name}` is named twice", parameter.span))
            if parameter.default is None and any(p.default is not None for p in before):
                raise SpecError(
                    Diagnostic(
                        "PF0119",
                        f"`{parameter.name}` has no default but follows one that has",
                        parameter.span,
                        help="parameters without a default come first",
                    )
                )
        return str(children[0]), self._token_or_node(children[0]), parameters

    def _refuse_constant(self, token: Token) -> None:
        if str(token) in RESERVED:
            raise SpecError(
                Diagnostic(
                    "PF0117",
                    f"`{token}` has a fixed meaning and can't be defined",
                    self._token_or_node(token),
                    help="choose another name",
                )
            )


def _first_word(span: Span) -> Span:
    word = re.match(r"\w+|.", span.text)
    return Span(span.source, span.start, span.start + len(word.group() if word else ""))


def _check_statements(body: Body) -> None:
    """Each statement starts a line and only the last has no name; anything else lacks an operator."""
    for before, statement in zip(body.statements, body.statements[1:]):
        place = statement.name_span or statement.value.span
        between = place.source.text[before.value.span.end : place.start]
        if "\n" not in between:
            raise SpecError(
                Diagnostic(
                    "PF0113",
                    "two values stand side by side",
                    _first_word(place),
                    "an operator is missing before this",
                    help="chain with `>>`, combine with `+ - * /`, or start a new line for a new definition",
                    expected=("operator",),
                )
            )
        if before.name is None:
            span = before.value.span
            raise SpecError(
                Diagnostic(
                    "PF0114",
                    "only the last expression of a body may go without a name",
                    span,
                    "its value is lost",
                    help="name it (`h = ...`), or join it to the next with an operator such as `>>`",
                )
            )


def too_large(span: Span) -> Diagnostic:
    return Diagnostic(
        "PF0115",
        "this number is too large to be meant",
        span,
        help="whole numbers go up to 2 ^ 40, about 1.1e12",
    )
