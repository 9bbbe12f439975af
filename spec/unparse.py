"""Expressions back to text, with no more brackets than needed: `parse(unparse(e)) == e`."""

from __future__ import annotations

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
    String,
)

_LEVEL = {">>": 1, "+": 2, "-": 2, "*": 3, "/": 3, "//": 3, "^": 5}
_UNARY, _POSTFIX = 4, 6
_WORDS = {True: "true", False: "false", None: "none"}


def unparse(node: Expr | Body) -> str:
    """The text of an expression on one line, or of a body with a line for each statement."""
    if isinstance(node, Body):
        return "\n".join((f"{s.name} = " if s.name else "") + unparse(s.value) for s in node.statements)
    return _text(node, 0)


def _text(node: Expr, outer: int) -> str:
    """`outer` is the least level that may stand here without brackets."""
    if isinstance(node, Number):
        return _number(node.value)
    if isinstance(node, String):
        return f'"{node.value}"'
    if isinstance(node, Constant):
        return _WORDS[node.value]
    if isinstance(node, Name):
        return node.name
    if isinstance(node, ListExpr):
        return "[" + ", ".join(_text(item, 0) for item in node.items) + "]"
    if isinstance(node, Call):
        return _text(node.function, _POSTFIX) + "(" + ", ".join(map(_argument, node.arguments)) + ")"
    if isinstance(node, Attribute):
        return f"{_text(node.value, _POSTFIX)}.{node.name}"
    if isinstance(node, Negate):
        return _bracketed("-" + _text(node.operand, _UNARY), _UNARY, outer)
    if isinstance(node, Binary):
        return _bracketed(_binary(node), _LEVEL[node.operator], outer)
    raise TypeError(f"not an expression: {node!r}")


def _binary(node: Binary) -> str:
    level = _LEVEL[node.operator]
    if node.operator == "^":
        # From the right, and a minus may begin the exponent; its own operand is a power again.
        if isinstance(node.right, Negate):
            right = "-" + _exponent(node.right.operand)
        else:
            right = _text(node.right, level)
        return f"{_text(node.left, _POSTFIX)} ^ {right}"
    return f"{_text(node.left, level)} {node.operator} {_text(node.right, level + 1)}"


def _exponent(node: Expr) -> str:
    return "-" + _exponent(node.operand) if isinstance(node, Negate) else _text(node, _LEVEL["^"])


def _argument(argument: Argument) -> str:
    value = _text(argument.value, 0)
    return f"{argument.name}={value}" if argument.name else value


def _bracketed(text: str, level: int, outer: int) -> str:
    return f"({text})" if level < outer else text


def _number(value: int | float) -> str:
    # 1e+16 and 1e-05 read back as written; a float that is whole keeps its point.
    return repr(value)
