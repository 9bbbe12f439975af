"""Algebra: what is written in several ways gets one form, and what changes nothing disappears."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ..ir import Builder, Value
from ..ops.elementwise import Add, Cast, Constant, Div, Mul, Neg, Pow, Rsqrt, Sqrt, Square, Stop, Sub
from .patterns import Const, Match, Matcher, OpPattern, Var, op
from .rewriting import RewritePass, Rule, Rules

x, y, c, d = Var("x"), Var("y"), Const("c"), Const("d")
add, sub, mul, div, power = op(Add), op(Sub), op(Mul), op(Div), op(Pow)
neg, sqrt, cast, stop = op(Neg), op(Sqrt), op(Cast), op(Stop)


def _keeps_type(m: Match, _: Matcher) -> str | None:
    return None if m.x.type == m.root.output.type else "the op also changes the type"


def _row(name: str, pattern: OpPattern, build: Callable[[Match, Builder], Value], *conditions: Any) -> Rule:
    return Rule(name, pattern, build, conditions, quiet=True)


def _drops(name: str, pattern: OpPattern) -> Rule:
    return _row(name, pattern, lambda m, b: m.x, _keeps_type)


def _merge(b: Builder, m: Match, value: float) -> Value:
    """A constant that stands for c and d together, of the wider dtype."""
    dtype = "f32" if "f32" in (m.c.dtype, m.d.dtype) else m.c.dtype
    result: Value = b.emit(Constant(value, dtype), hint="constant")
    return result


def _same_dtype(m: Match, _: Matcher) -> str | None:
    return None if m.c.dtype == m.d.dtype else "the constants have two dtypes"


def _divisor(m: Match, _: Matcher) -> str | None:
    if not m.c.value or not math.isfinite(1.0 / m.c.value):
        return f"1 / {m.c.value} is no number"
    return None


def _reciprocal(m: Match, b: Builder) -> Value:
    dtype = m.c.dtype if m.c.dtype in ("f64", "f32") else "f32"
    result: Value = b.emit(Mul(), m.x, b.emit(Constant(1.0 / m.c.value, dtype), hint="constant"))
    return result


def _float(m: Match, _: Matcher) -> str | None:
    return None if m.x.type.is_float else "the operand is no float"


NEUTRAL: Rules = (
    _drops("x + 0", add(x, 0)),
    _drops("x - 0", sub(x, 0)),
    _drops("x * 1", mul(x, 1)),
    _drops("x / 1", div(x, 1)),
    _drops("x ^ 1", power(x, 1)),
    _drops("--x", neg(neg(x))),
    _drops("cast to the same dtype", cast(x)),
    _row("stop(stop(x))", stop(stop(x)), lambda m, b: b.emit(Stop(), m.x)),
)
POWERS: Rules = (
    _row("x ^ 2", power(x, 2), lambda m, b: b.emit(Square(), m.x), _float),
    _row("x ^ 0.5", power(x, 0.5), lambda m, b: b.emit(Sqrt(), m.x), _float),
    _row("x ^ -0.5", power(x, -0.5), lambda m, b: b.emit(Rsqrt(), m.x), _float),
    _row("1 / sqrt(x)", div(1, sqrt(x)), lambda m, b: b.emit(Rsqrt(), m.x), _float),
)
CONSTANTS: Rules = (
    _row("x / c", div(x, c), _reciprocal, _divisor),
    _row("(x + c) + d", add(add(x, c), d), lambda m, b: b.emit(Add(), m.x, _merge(b, m, m.c.value + m.d.value)),
         _same_dtype),
    _row("(x * c) * d", mul(mul(x, c), d), lambda m, b: b.emit(Mul(), m.x, _merge(b, m, m.c.value * m.d.value)),
         _same_dtype),
)  # fmt: skip
SIGNS: Rules = (
    _row("x + -y", add(x, neg(y)), lambda m, b: b.emit(Sub(), m.x, m.y)),
    _row("x - -y", sub(x, neg(y)), lambda m, b: b.emit(Add(), m.x, m.y)),
    _row("-x * -y", mul(neg(x), neg(y)), lambda m, b: b.emit(Mul(), m.x, m.y)),
)


@dataclass(frozen=True)
class Canonicalise(RewritePass):
    """Neutral elements, double signs, powers that are ops, constants merged, division by a constant."""

    name: ClassVar[str] = "canonicalise"
    rules: ClassVar[Rules] = NEUTRAL + POWERS + CONSTANTS + SIGNS
