"""Formulas that write themselves into a graph: `2 * g * x` with terms for g and x adds the nodes."""

from __future__ import annotations

from dataclasses import dataclass

from ..ir import Builder, Value
from .contract import OPS


@dataclass(frozen=True, eq=False)
class Term:
    """A value in a graph under construction. Operators and methods add a node and give its value as a term;
    operands broadcast by name, as everywhere."""

    b: Builder
    value: Value

    def of(self, op: str, *others: Term | float) -> Term:
        """The op of this term and others: `x.of("maximum", 0.0)`."""
        values = [o.value if isinstance(o, Term) else _number(self.b, o) for o in others]
        return Term(self.b, self.b.emit(OPS[op](), self.value, *values))

    def __add__(self, other: Term | float) -> Term:
        return self.of("add", other)

    def __sub__(self, other: Term | float) -> Term:
        return self.of("sub", other)

    def __mul__(self, other: Term | float) -> Term:
        return self.of("mul", other)

    def __truediv__(self, other: Term | float) -> Term:
        return self.of("div", other)

    def __neg__(self) -> Term:
        return self.of("neg")

    def __radd__(self, other: float) -> Term:
        return self + other

    def __rmul__(self, other: float) -> Term:
        return self * other

    def __rsub__(self, other: float) -> Term:
        return Term(self.b, _number(self.b, other)).of("sub", self)

    def __lt__(self, other: Term | float) -> Term:
        return self.of("less", other)

    def __le__(self, other: Term | float) -> Term:
        return self.of("less_equal", other)

    def where(self, x: Term | float, y: Term | float) -> Term:
        """x where this condition holds, else y."""
        return self.of("where", x, y)


def _number(b: Builder, value: float) -> Value:
    made: Value = b.emit(OPS["constant"](float(value)), hint="constant")  # type: ignore[call-arg]
    return made
