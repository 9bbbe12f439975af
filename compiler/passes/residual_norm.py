"""A residual step and the norm after it as one op, where the sum goes on as the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..ir import Builder, Value
from ..ops.elementwise import Add
from ..ops.norm import AddRmsNorm, RmsNorm
from .patterns import Attr, Match, Matcher, Var, op
from .rewriting import RewritePass, Rule, Rules

add, rms_norm = op(Add), op(RmsNorm)


def _one_type(m: Match, _: Matcher) -> str | None:
    return None if m.x.type == m.y.type else f"the sum broadcasts {m.x.type} and {m.y.type}"


def _sum_goes_on(m: Match, graph: Matcher) -> str | None:
    return None if graph.other_use(m.root.inputs[0], m.root) else "nothing else uses the sum"


def _fused(m: Match, b: Builder) -> Mapping[Value, Value]:
    normed, total = b.emit(AddRmsNorm(m.offset, m.eps), m.x, m.y, m.scale)
    return {m.root.output: normed, m.root.inputs[0]: total}


@dataclass(frozen=True)
class ResidualNorm(RewritePass):
    """rms_norm(x + y), x + y  ->  add_rms_norm(x, y)."""

    name: ClassVar[str] = "residual_norm"
    rules: ClassVar[Rules] = (
        Rule(
            "residual_norm",
            rms_norm(add(Var("x"), Var("y")), Var("scale"), offset=Attr("offset"), eps=Attr("eps")),
            _fused,
            (_one_type, _sum_goes_on),
        ),
    )
