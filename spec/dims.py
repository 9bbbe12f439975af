"""The arithmetic of sizes: plain numbers and names of dims, checked for cycles, exactness and magnitude."""

from __future__ import annotations

import math
from collections.abc import Mapping

from .ast import Binary, Expr, Name, Negate, Number
from .diagnostics import Diagnostic, Diagnostics, Note, SpecError, did_you_mean
from .expressions import LARGEST, too_large
from .model import DimDef

Value = int | float


def dim_values(dims: Mapping[str, DimDef], found: Diagnostics) -> dict[str, Value]:
    """The value of every dim. Adds findings (PF021x) for what can't be computed and leaves it out."""
    values: dict[str, Value] = {}
    failed: set[str] = set()

    def value_of(name: str, above: tuple[str, ...]) -> Value | None:
        if name in values or name in failed:
            return values.get(name)
        if name in above:
            circle = above[above.index(name) :]
            failed.update(circle)
            found.add(
                Diagnostic(
                    "PF0211",
                    f"dim `{circle[0]}` depends on itself",
                    dims[circle[0]].span,
                    " -> ".join((*circle, circle[0])),
                    tuple(Note(f"`{n}` is set here", dims[n].span) for n in circle[1:]),
                )
            )
            return None
        if len(above) > 100:
            found.add(Diagnostic("PF0116", "dims depend on one another too deeply", dims[name].span))
            failed.add(name)
            return None
        ready: dict[str, Value] = {}
        for node in dims[name].value.walk():
            if isinstance(node, Name) and node.name in dims:
                inner = value_of(node.name, (*above, name))
                if inner is None:
                    failed.add(name)
                    return None
                ready[node.name] = inner
        try:
            values[name] = evaluate(dims[name].value, ready, list(dims))
        except SpecError as error:
            found.extend(error.diagnostics)
            failed.add(name)
        return values.get(name)

    for name in dims:
        value_of(name, ())
    return values


def evaluate(expr: Expr, values: Mapping[str, Value], names: list[str] | None = None) -> Value:
    """The number an expression stands for; `/` is exact on whole numbers, `//` rounds down.

    Raises: SpecError (PF021x) at the part that can't be computed.
    """
    if isinstance(expr, Number):
        return expr.value
    if isinstance(expr, Name):
        if expr.name not in values:
            raise SpecError(
                Diagnostic(
                    "PF0210",
                    f"unknown dim `{expr.name}`",
                    expr.span,
                    help=did_you_mean(expr.name, names or list(values)),
                )
            )
        return values[expr.name]
    if isinstance(expr, Negate):
        return -evaluate(expr.operand, values, names)
    if isinstance(expr, Binary) and expr.operator != ">>":
        left = evaluate(expr.left, values, names)
        right = evaluate(expr.right, values, names)
        return _bounded(_apply(expr, left, right), expr)
    raise SpecError(
        Diagnostic("PF0212", "a size is a number, a dim, or arithmetic on them", expr.span, "this is neither")
    )


def _bounded(value: Value, expr: Expr) -> Value:
    if not math.isfinite(value) or (isinstance(value, int) and abs(value) > LARGEST):
        raise SpecError(too_large(expr.span))
    return value


def _apply(expr: Binary, left: Value, right: Value) -> Value:
    operator = expr.operator
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    if operator == "^":
        return _power(expr, left, right)
    if right == 0:
        raise SpecError(Diagnostic("PF0213", "this divides by zero", expr.operator_span))
    if operator == "//":
        return left // right
    if isinstance(left, int) and isinstance(right, int):
        if left % right:
            raise SpecError(
                Diagnostic(
                    "PF0213",
                    f"{left} is not divisible by {right}",
                    expr.span,
                    f"{left} / {right} is not a whole number",
                    help="`/` is exact; `//` rounds down; for a fraction write one of them as 1.0",
                )
            )
        return left // right
    return left / right


def _power(expr: Binary, left: Value, right: Value) -> Value:
    if left == 0 and right < 0:
        raise SpecError(Diagnostic("PF0213", "this divides by zero", expr.operator_span))
    if left < 0 and not float(right).is_integer():
        raise SpecError(Diagnostic("PF0213", "a root of a negative number is not a number", expr.span))
    # By logarithms first: 10 ^ 10 ^ 10 must not be computed to be found too large.
    if left != 0 and right * math.log2(abs(left)) > 1000:
        raise SpecError(too_large(expr.span))
    result: Value = left**right
    return result
