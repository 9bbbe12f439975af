"""Arithmetic on numbers and dims, as the language has it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .binding import BindError
from .ops.elementwise import Elementwise
from .size import Polynomial, divide
from .types import Dim
from .values import describe, is_number

LARGEST = 2**40


def arithmetic(operator: str, left: Any, right: Any) -> Any:
    """left operator right: `/` is exact (a size stays a size where it can), `//` floors, `^` is power.

    Raises: BindError where an operand is no number, for division by zero, and for sizes too large.
    """
    a, b = (v.size if isinstance(v, Dim) else v for v in (left, right))
    for v in (a, b):
        if not is_number(v):
            raise BindError(
                f"`{operator}` works on numbers, tensors and blocks, not on {describe(v)}", code="PF0301"
            )
    if operator == "+":
        result = a + b
    elif operator == "-":
        result = a - b
    elif operator == "*":
        result = a * b
    elif operator in ("/", "//"):
        if isinstance(b, (int, float)) and b == 0:
            raise BindError("division by zero", code="PF0306")
        if operator == "//":
            result = a // b
        elif isinstance(a, float) or isinstance(b, float):
            result = a / b
        else:
            exact = divide(a, b)
            if exact is None and (isinstance(a, Polynomial) or isinstance(b, Polynomial)):
                raise BindError(
                    f"{a} is not divisible by {b}", code="PF0306", help="`//` divides and rounds down"
                )
            result = a / b if exact is None else exact
    elif isinstance(a, Polynomial) or isinstance(b, Polynomial):
        raise BindError("powers of symbolic sizes are not supported", code="PF0306")
    else:
        try:
            result = (
                math.pow(a, b) if isinstance(a, float) or isinstance(b, float) or b < 0 else a ** min(b, 64)
            )
        except (ValueError, OverflowError, ZeroDivisionError):
            raise BindError(f"{a} ^ {b} is no number", code="PF0306") from None
    if isinstance(result, (int, float)) and abs(result) > LARGEST:
        raise BindError(f"{result:.3g} is too large to be meant", code="PF0315")
    return result


def numeric_call(cls: type[Elementwise], arguments: Sequence[Any]) -> Any:
    """An elementwise op on numbers: `sqrt(d)`. Raises: BindError where the result is no number."""
    with np.errstate(all="ignore"):
        value = float(cls.function(*(np.float64(a) for a in arguments)))
    if not math.isfinite(value):
        raise BindError(f"{cls.name}({', '.join(map(str, arguments))}) is no number", code="PF0306")
    return value
