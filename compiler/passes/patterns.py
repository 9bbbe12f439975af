"""Patterns over graphs. A pattern reads like the code it matches:

    softcap, unembed = op(Softcap), op(Unembed)
    x, table, cap = Var("x"), Var("table"), Attr("cap")
    softcap(once(unembed(x, table)), cap=cap)

A match binds the variables. Where it fails, it says how many of the pattern's ops were not found and why,
which is what near misses are made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..ir import Graph, Node, Value
from ..ops.contract import Op
from ..ops.elementwise import Constant

Kinds = tuple[type[Op], ...]

_COMMUTATIVE = {"add", "mul", "maximum", "minimum", "equal", "logical_and"}


@dataclass(frozen=True)
class Var:
    """Any tensor; the same variable twice means the same value."""

    name: str


@dataclass(frozen=True)
class Rest:
    """All operands that are left, bound to a tuple."""

    name: str


@dataclass(frozen=True)
class Const:
    """A constant, bound to its op (`.value`, `.dtype`)."""

    name: str


@dataclass(frozen=True)
class Attr:
    """Any value of an attribute."""

    name: str


@dataclass(frozen=True)
class OpPattern:
    """An op over operands. `once`: nothing else may use its result; `optional`: where another op stands,
    the first operand is matched in its place and attribute variables are None."""

    cls: type[Op]
    operands: tuple[Any, ...]
    attributes: tuple[tuple[str, Any], ...]
    once: bool = False
    optional: bool = False

    @property
    def size(self) -> int:
        """How many ops must be found."""
        return (not self.optional) + sum(o.size for o in self.operands if isinstance(o, OpPattern))


class op:
    """`op(Softcap)` makes patterns when called: `op(Softcap)(x, cap=3.0)`."""

    def __init__(self, cls: type[Op]) -> None:
        self.cls = cls

    def __call__(self, *operands: Any, **attributes: Any) -> OpPattern:
        return OpPattern(self.cls, operands, tuple(attributes.items()))


def once(pattern: OpPattern) -> OpPattern:
    """The pattern, for a result that nothing else uses (it disappears in the rewrite)."""
    return replace(pattern, once=True)


def optional(pattern: OpPattern) -> OpPattern:
    """The pattern, or its first operand alone."""
    return replace(pattern, optional=True)


@dataclass(frozen=True)
class Failure:
    reason: str
    missing: int  # how many ops of the pattern were not found because of it


@dataclass(frozen=True)
class Match:
    """What variables stand for: `match.x`, `match["x"]`; `root` is the node matched by the whole pattern."""

    root: Node
    bound: Mapping[str, Any] = field(default_factory=dict)
    nodes: tuple[Node, ...] = ()
    failures: tuple[Failure, ...] = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self.bound[name]
        except KeyError:
            raise AttributeError(name) from None

    __getitem__ = __getattr__

    def node(self, cls: type[Op]) -> Node | None:
        """The matched node of an op (the first), if there is one."""
        return next((n for n in self.nodes if isinstance(n.op, cls)), None)

    def bind(self, name: str, value: Any) -> Match:
        if name in self.bound and self.bound[name] is not value and self.bound[name] != value:
            return self.fail(f"`{name}` is two different values", 2)
        return replace(self, bound={**self.bound, name: value})

    def fail(self, reason: str, missing: int) -> Match:
        return replace(self, failures=(*self.failures, Failure(reason, missing)))

    @property
    def missing(self) -> int:
        return sum(f.missing for f in self.failures)


class Matcher:
    """Matches patterns in one graph (or region)."""

    def __init__(self, graph: Graph) -> None:
        self.producers = graph.producers()
        self.users = graph.users()
        self.outputs = {v: k for k, v in reversed(graph.outputs.items())}
        self.inputs = frozenset(graph.inputs)

    def match(self, pattern: OpPattern, node: Node) -> Match | None:
        """The match with `node` at the root, possibly with failures; None where the root is another op."""
        return self._node(pattern, node, Match(node)) if type(node.op) is pattern.cls else None

    def other_use(self, value: Value, by: Node | None = None) -> str | None:
        """What uses a value besides `by`, in words; None where nothing does."""
        if value in self.outputs:
            return f"output `{self.outputs[value]}`"
        others = [n for n in self.users.get(value, ()) if n is not by]
        if not others:
            return None
        where = f" at {others[0].origin.path}" if others[0].origin.path else ""
        return f"`{others[0].op.name}`{where}"

    def way(self, value: Value, user: Node, to: Kinds, through: Kinds) -> list[Node] | str:
        """What an operand comes from: a node of the kinds `to`, then those of `through` that stand between, each by its
        first operand, where nothing else uses any of it; or, in words, why there is none."""
        found: list[Node] = []
        while not found or isinstance(found[0].op, through):
            node = self.producers.get(value)
            if node is None or not isinstance(node.op, (*to, *through)):
                return f"%{value.name} is " + (f"made by `{node.op.name}`" if node else "from outside")
            if use := self.other_use(value, user):
                return f"%{value.name} is also used by {use}"
            found.insert(0, node)
            value, user = node.inputs[0], node
        return found

    def not_its_own(self, weights: Iterable[Value], node: Node) -> str | None:
        """Which of a node's weights is computed or serves elsewhere too, in words; None where none does."""
        for weight in weights:
            if weight not in self.inputs:
                return f"%{weight.name} is computed"
            if use := self.other_use(weight, node):
                return f"%{weight.name} is also used by {use}"
        return None

    def _node(self, pattern: OpPattern, node: Node, m: Match) -> Match:
        m = replace(m, nodes=(*m.nodes, node))
        for key, want in pattern.attributes:
            found = getattr(node.op, key)
            if isinstance(want, Attr):
                m = m.bind(want.name, found)
            elif found != want:
                m = m.fail(f"`{node.op.name}` has {key}={found}, not {want}", 1)
        operands, wanted = node.inputs, pattern.operands
        if wanted and isinstance(wanted[-1], Rest):
            k = len(wanted) - 1
            m = m.bind(wanted[-1].name, operands[k:])
            operands, wanted = operands[:k], wanted[:k]
        if len(operands) != len(wanted):
            return m.fail(f"`{node.op.name}` has {len(operands)} operands here, not {len(wanted)}", 1)
        straight = self._operands(wanted, operands, node, m)
        if straight.failures and node.op.name in _COMMUTATIVE:
            return min(straight, self._operands(wanted, operands[::-1], node, m), key=lambda m: m.missing)
        return straight

    def _operands(self, wanted: tuple[Any, ...], operands: tuple[Value, ...], user: Node, m: Match) -> Match:
        for pattern, value in zip(wanted, operands):
            m = self._value(pattern, value, user, m)
        return m

    def _value(self, pattern: Any, value: Value, user: Node, m: Match) -> Match:
        node = self.producers.get(value)
        if isinstance(pattern, Var):
            return m.bind(pattern.name, value)
        if isinstance(pattern, Const):
            if node and isinstance(node.op, Constant):
                return m.bind(pattern.name, node.op)
            return m.fail(f"%{value.name} is no constant", 1)
        if isinstance(pattern, (int, float)):
            if node and isinstance(node.op, Constant) and node.op.value == pattern:
                return m
            return m.fail(f"%{value.name} is not {pattern}", 1)
        assert isinstance(pattern, OpPattern)
        if node is None or type(node.op) is not pattern.cls:
            if pattern.optional:
                for _, want in pattern.attributes:
                    m = m.bind(want.name, None) if isinstance(want, Attr) else m
                return self._value(pattern.operands[0], value, user, m)
            found = f"is made by `{node.op.name}`" if node else "comes from outside"
            return m.fail(f"%{value.name} {found}, not by `{pattern.cls.name}`", pattern.size)
        if pattern.once and (use := self.other_use(value, user)):
            m = m.fail(f"the result of `{node.op.name}` is also used by {use}", 1)
        return self._node(pattern, node, m)
