"""The head of a language model and its loss as one op, so that no [batch, time, vocab] need exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..ops.linear import Unembed
from ..ops.loss import CrossEntropy, LinearCrossEntropy
from ..ops.norm import Softcap
from .patterns import Attr, Match, Matcher, Var, once, op, optional
from .rewriting import RewritePass, Rule, Rules

cross_entropy, softcap, unembed = op(CrossEntropy), op(Softcap), op(Unembed)


def _classes(m: Match, _: Matcher) -> str | None:
    return "the targets are probabilities, not classes" if m.targets.type.is_float else None


@dataclass(frozen=True)
class LossHead(RewritePass):
    """cross_entropy(softcap(unembed(x, table)), targets)  ->  linear_cross_entropy(x, table, targets)."""

    name: ClassVar[str] = "loss_head"
    rules: ClassVar[Rules] = (
        Rule(
            "loss_head",
            cross_entropy(
                optional(once(softcap(once(unembed(Var("x"), Var("table"))), cap=Attr("cap")))), Var("targets")
            ),
            lambda m, b: b.emit(LinearCrossEntropy(m.cap), m.x, m.table, m.targets),
            (_classes,),
        ),
    )
