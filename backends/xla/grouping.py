"""Stacks of equal layers, stored the way a scan over groups of unrolled layers reads them.

A repetition of n layers runs as a scan of m = n // u steps with u layers written out in each, then n % u
plain layers. Slicing one big stack inside such a step would copy the slices, and its gradient would pad and
add them together again; so a stack is kept as u arrays with a leading dim of m, and n % u without one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count as numbers
from typing import Any

import jax
import jax.numpy as jnp

from planform.compiler.ir import Graph, Node, Value
from planform.compiler.ops.control import Repeat
from planform.compiler.parameters import slice_text

from .policy import Policy

_SLICE = re.compile(r"\[(\d+):(\d+)(?::(\d+))?\]")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Grouped:
    """Element i < u * m of a stack is `scanned[i % u][i // u]`, the others are `plain[i - u * m]`.

    Entries are arrays, names, or again Grouped (of an inner repetition).
    """

    scanned: list[Any]
    plain: list[Any]

    @property
    def unrolled(self) -> int:
        return len(self.scanned)


def split(count: int, unroll: int) -> tuple[int, int, int]:
    """(u, m, rest): u arrays with a leading dim m, then `rest` plain ones; all plain if m would be 1."""
    u = min(unroll, count)
    m = count // u
    return (u, m, count - u * m) if m > 1 else (0, 0, count)


def group(stack: Any, count: int, unroll: int) -> Grouped:
    """A stack (array with a leading dim, or Grouped in another way) grouped for `unroll`."""
    u, m, rest = split(count, unroll)
    if isinstance(stack, Grouped):
        if stack.unrolled == u and len(stack.plain) == rest:
            return stack
        stack = join(stack)

    def take(at: Any) -> Any:
        return jax.tree.map(lambda a: a[at], stack)

    return Grouped([take(slice(j, m * u, u)) for j in range(u)], [take(u * m + i) for i in range(rest)])


def join(stack: Any) -> Any:
    """One array with a leading dim."""
    if not isinstance(stack, Grouped):
        return stack
    parts = []
    if stack.scanned:
        scanned = [jax.vmap(join)(e) for e in stack.scanned]
        parts.append(jnp.stack(scanned, 1).reshape(-1, *scanned[0].shape[1:]))
    if stack.plain:
        parts.append(jnp.stack([join(e) for e in stack.plain]))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def names(path: str, groupings: Sequence[tuple[int, int]]) -> Any:
    """The stored names behind a path, in the structure their arrays have in a program.

    `groupings` has (count, unroll) for each leading slice of the path: `a[0:5].w` with (5, 2) is stored as
    a[0:4:2].w, a[1:5:2].w and a[4].w.
    """
    parts = _SLICE.split(path)
    ranges = [range(int(parts[i]), int(parts[i + 1]), int(parts[i + 2] or 1)) for i in range(1, len(parts), 4)]
    assert len(ranges) == len(groupings), f"{path} has {len(ranges)} stacks, {len(groupings)} repetitions"

    def build(chosen: tuple[str, ...]) -> Any:
        level = len(chosen)
        if level == len(ranges):
            return parts[0] + "".join(c + text for c, text in zip(chosen, parts[4::4]))
        r, (count, unroll) = ranges[level], groupings[level]
        assert len(r) == count, f"{path} has {len(r)} layers, its repetition {count}"
        u, m, rest = split(count, unroll)
        stops = [min(r.start + (j + m * u) * r.step, r.stop) for j in range(u)]
        scanned = [slice_text(r[j], stops[j], u * r.step) for j in range(u)]
        plain = [f"[{r[u * m + i]}]" for i in range(rest)]
        return Grouped([build((*chosen, s)) for s in scanned], [build((*chosen, s)) for s in plain])

    return build(())


# -- which repetition is unrolled how far ------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """The unrolling of every repetition of a graph, by the order in which `walk` meets them."""

    unroll: Mapping[Node, int]

    @staticmethod
    def of(graph: Graph, policy: Policy) -> Plan:
        found: dict[Node, int] = {}
        _plan(graph, policy, policy.budget, found)
        return Plan(found)

    def groupings(self, graph: Graph, value: Value, stacked: int) -> tuple[tuple[int, int], ...]:
        """(count, unroll) for the leading dims of a stacked input of `graph`; one array where no repetition takes it
        apart."""
        found = self._groupings(graph, value, stacked)
        return tuple((n, 1) for n in value.type.sizes[:stacked]) if found is None else found  # type: ignore[misc]

    def _groupings(self, graph: Graph, value: Value, stacked: int) -> tuple[tuple[int, int], ...] | None:
        if not stacked:
            return ()
        for node in graph.nodes:
            if isinstance(node.op, Repeat) and node.region:
                start, end = node.op.carries, node.op.carries + node.op.stacks
                mine = node.inputs[start:end]
                if value in mine:
                    argument = node.region.inputs[start + mine.index(value)]
                    inner = self.groupings(node.region, argument, stacked - 1)
                    return ((node.op.count, self.unroll[node]), *inner)
                if value in node.inputs[end:]:  # the same stack at every run, which a repetition inside takes apart
                    argument = node.region.inputs[end + node.inputs[end:].index(value)]
                    if (found := self._groupings(node.region, argument, stacked)) is not None:
                        return found
        return None


def layers_in(node: Node) -> int:
    """How many layers of the spec one run of a repetition's region holds: the step of its stacks' slices."""
    assert isinstance(node.op, Repeat)
    steps = [
        int(m[3] or 1)
        for v in node.inputs[node.op.carries : node.op.carries + node.op.stacks]
        if (m := _SLICE.search(getattr(v, "path", "")))
    ]
    return max(steps, default=1)


def _plan(graph: Graph, policy: Policy, budget: int, found: dict[Node, int]) -> int:
    """Fills `found`; returns how many layer bodies the graph's program holds, those in scans counted twice. What short
    repetitions leave of the budget goes to longer ones.

    What is to be recomputed must stand in a scan on CPU: elsewhere XLA finds that it has it already.
    """
    repeats = sorted((n for n in graph.nodes if isinstance(n.op, Repeat) and n.region), key=lambda n: n.op.count)  # type: ignore[attr-defined]
    total = 0
    for i, node in enumerate(repeats):
        assert isinstance(node.op, Repeat) and node.region
        share = max((budget - total) // (len(repeats) - i), 1)
        body = max(_plan(node.region, policy, share, found), layers_in(node))
        n, most = node.op.count, max(share // body, 1)
        if policy.unroll is not None:
            u = min(policy.unroll, n)
        elif node.op.remat and policy.platform == "cpu":
            u = 1
        elif n <= most and not (policy.remat != "none" and policy.platform == "cpu"):
            u = n
        else:
            # In a scan a body is compiled for two loops, and reads and writes its stacks: it counts twice.
            u = next(k for k in numbers(max(min(n, most) // 2, 1), -1) if 2 * k + n % k <= most or k == 1)
        found[node] = u
        used, _, rest = split(n, u)
        total += (2 * used + rest) * body
    return total
