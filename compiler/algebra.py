"""Arithmetic on numbers and dims, as the language has it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .binding import BindError
from .ops.elementwise import Elementwise
from .size import Polynomial, Size, divide
from .types import Dim
from .values import describe, is_number

LARGEST = 2**40

Number = Size | float


def arithmetic(operator: str, left: Any, right: Any) -> Number:
    """left operator right. `/` is exact on sizes (a fraction needs a float), `//` floors, `^` is power.

    Raises: BindError where an operand is no number, for division by zero, and for sizes too large.
    """
    a, b = (v.size if isinstance(v, Dim) else v for v in (left, right))
    for v in (a, b):
        if not is_number(v):
            raise BindError(f"`{operator}` works on numbers, tensors and blocks, not on {describe(v)}", code="PF0301")
    result = _compute(operator, a, b)
    if isinstance(result, (int, float)) and not abs(result) <= LARGEST:
        raise BindError(f"{result:.3g} is too large to be meant", code="PF0315")
    return result


def _compute(operator: str, a: Any, b: Any) -> Number:
    symbolic = isinstance(a, Polynomial) or isinstance(b, Polynomial)
    if symbolic and (isinstance(a, float) or isinstance(b, float) or operator == "^"):
        raise BindError(f"`{operator}` can't be worked out for the symbolic sizes {a} and {b}", code="PF0306")
    if operator == "+":
        return a + b
    if operator == "-":
        return a - b
    if operator == "*":
        return a * b
    if operator == "^":
        return _power(a, b)
    if not isinstance(b, Polynomial) and b == 0:
        raise BindError("division by zero", code="PF0306")
    if operator == "//":
        return a // b
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    exact = divide(a, b)
    if exact is None:
        raise BindError(
            f"{a} is not divisible by {b}", code="PF0306", help="`//` rounds down; for a fraction write one as 1.0"
        )
    return exact


def _power(a: int | float, b: int | float) -> int | float:
    if a == 0 and b < 0:
        raise BindError("division by zero", code="PF0306")
    if a < 0 and not float(b).is_integer():
        raise BindError(f"{a} ^ {b} is no real number", code="PF0306")
    # By logarithms first: 10 ^ 10 ^ 10 must not be computed to be found too large.
    if a != 0 and b * math.log2(abs(a)) > 60:
        raise BindError(f"{a} ^ {b} is too large to be meant", code="PF0315")
    return a**b


def numeric_call(cls: type[Elementwise], arguments: Sequence[Any]) -> float:
    """An elementwise op on numbers: `sqrt(d)`. Raises: BindError where the result is no number."""
    with np.errstate(all="ignore"):
        value = float(cls.function(*(np.float64(a) for a in arguments)))
    if not math.isfinite(value):
        raise BindError(f"{cls.name}({', '.join(map(str, arguments))}) is no number", code="PF0306")
    return value
