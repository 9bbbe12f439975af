"""The head of a language model and its loss as one op, so that no [batch, time, vocab] need exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..ir import Builder, Node, Value
from ..ops.elementwise import Constant, Mul, Stop
from ..ops.linear import Unembed
from ..ops.loss import CrossEntropy, LinearCrossEntropy, LinearSoftCrossEntropy
from ..ops.norm import Softcap, Softmax
from .patterns import Attr, Const, Match, Matcher, OpPattern, Var, op, optional
from .rewriting import RewritePass, Rule, Rules

cross_entropy, softcap, softmax, unembed = op(CrossEntropy), op(Softcap), op(Softmax), op(Unembed)
mul, stop = op(Mul), op(Stop)


def _scaled(z: OpPattern, name: str) -> OpPattern:
    """z, or z times a constant (division by one has become that): a temperature."""
    return optional(mul(z, Const(name)))


CLASSES = cross_entropy(optional(softcap(unembed(Var("x"), Var("table")), cap=Attr("cap"))), Var("targets"))
SOFT = cross_entropy(
    _scaled(optional(softcap(unembed(Var("x"), Var("table")), cap=Attr("cap"))), "scale"),
    optional(
        stop(
            softmax(
                optional(
                    stop(
                        _scaled(
                            optional(softcap(unembed(Var("y"), Var("other")), cap=Attr("other_cap"))), "other_scale"
                        )
                    )
                )
            )
        )
    ),
)


def _classes(m: Match, _: Matcher) -> str | None:
    return "the targets are probabilities, not classes" if m.targets.type.is_float else None


def _in_losses_only(m: Match, matcher: Matcher) -> str | None:
    """Logits that other losses of these forms use too are computed once for each: a loss holds none of them.

    Any other use needs them as a whole, and then they can serve here as well.
    """
    for node in m.nodes[1:]:
        if use := _other_use(node, matcher):
            return f"the result of `{node.op.name}` is also used by {use}"
    return None


def _other_use(node: Node, matcher: Matcher) -> str | None:
    """What needs a node's result as a whole, in words; None where only losses do that could do without."""
    value = node.output
    if value in matcher.outputs:
        return matcher.other_use(value)
    for user in matcher.users.get(value, ()):
        passed_on = isinstance(user.op, (Softcap, Softmax, Stop)) or _by_constant(user, matcher)
        if isinstance(user.op, CrossEntropy) and _has_head(user, matcher):
            continue
        if passed_on and _other_use(user, matcher) is None:
            continue
        where = f" at {user.origin.path}" if user.origin.path else ""
        return f"`{user.op.name}`{where}"
    return None


def _has_head(loss: Node, matcher: Matcher) -> bool:
    """Whether a cross-entropy has one of these forms."""
    soft, classes = matcher.match(SOFT, loss), matcher.match(CLASSES, loss)
    assert soft and classes
    return not soft.failures or not (classes.failures or _classes(classes, matcher))


def _by_constant(node: Node, matcher: Matcher) -> bool:
    made = [matcher.producers.get(v) for v in node.inputs]
    return isinstance(node.op, Mul) and any(n is not None and isinstance(n.op, Constant) for n in made)


def _soft(m: Match, b: Builder) -> Value:
    y, other = m.y, m.other
    if m.node(Stop) is not None:
        y, other = b.emit(Stop(), y), b.emit(Stop(), other)
    scales = [float(c.value) if c is not None else 1.0 for c in (m.bound.get("scale"), m.bound.get("other_scale"))]
    made: Value = b.emit(LinearSoftCrossEntropy(m.cap, scales[0], m.other_cap, scales[1]), m.x, m.table, y, other)
    return made


def _hard(m: Match, b: Builder) -> Any:
    return b.emit(LinearCrossEntropy(m.cap), m.x, m.table, m.targets)


@dataclass(frozen=True)
class LossHead(RewritePass):
    """cross_entropy(softcap(unembed(x, table)), targets)  ->  linear_cross_entropy(x, table, targets); and with the
    softmax of another such head as targets  ->  linear_soft_cross_entropy(x, table, y, other)."""

    name: ClassVar[str] = "loss_head"
    rules: ClassVar[Rules] = (
        Rule("loss_head", SOFT, _soft, (_in_losses_only,)),
        Rule("loss_head", CLASSES, _hard, (_classes, _in_losses_only)),
    )
