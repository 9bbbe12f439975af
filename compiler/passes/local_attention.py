"""Causal attention in a window goes in blocks: time * window scores instead of time^2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

from ..ir import Builder, Graph, Value
from ..ops.attention import Attend, AttendLocal
from .base import Pass, Trace
from .patterns import Match, Matcher, Rest, op
from .rewriting import Rule, apply_rules


def _causal(m: Match, _: Matcher) -> str | None:
    return None if m.root.op.causal else "it is not causal"  # type: ignore[attr-defined]


def _windowed(m: Match, _: Matcher) -> str | None:
    return None if m.root.op.window else "it has no window"  # type: ignore[attr-defined]


def _along_stream(m: Match, _: Matcher) -> str | None:
    query, key = m.inputs[0].type, m.inputs[1].type
    return None if query.dims[:-2] == key.dims[:-2] else "queries and keys lie on two axes"


@dataclass(frozen=True)
class LocalAttention(Pass):
    """attend(causal, window)  ->  attend_local, in blocks of `block` entries or the window, if that is less."""

    name: ClassVar[str] = "local_attention"
    block: int = 512

    def run(self, graph: Graph, trace: Trace) -> Graph:
        def local(m: Match, b: Builder) -> Value | Mapping[Value, Value]:
            plain = {f.name: getattr(m.root.op, f.name) for f in fields(m.root.op)}
            result: Value = b.emit(AttendLocal(**plain, block=min(self.block, plain["window"])), *m.inputs)
            return result

        rule = Rule("local_attention", op(Attend)(Rest("inputs")), local, (_causal, _windowed, _along_stream))
        return apply_rules(graph, (rule,), trace)
