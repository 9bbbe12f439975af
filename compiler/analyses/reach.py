"""How far values depend on the inputs along the sequence axis; causality is read off here.

Bounds add up along the graph: a window of 8 keys after a window of 8 keys reaches 14 entries back.
"""

from __future__ import annotations

from collections.abc import Mapping

from planform.spec import Diagnostic, Note, SpecError

from ..ir import Graph, Node, Value
from ..ops.contract import POINTWISE, Reach
from ..ops.control import Repeat

UNBOUNDED = Reach(None, None)


def node_reach(node: Node, stream: str | None) -> Reach:
    """How far one node's results depend on its inputs along the axis named `stream`.

    An op that reads positions or documents mixes along the stream exactly where it is given them. A result
    that has lost the axis depends on all of it; so does one of an op that mixes its last dims, where the stream
    is among them.
    """
    if stream is None or all(v.type.axis(stream) is None for v in node.inputs):
        return POINTWISE
    if any(v.type.axis(stream) is None for v in node.outputs) and not isinstance(node.op, Repeat):
        return UNBOUNDED
    first = node.inputs[0].type
    if stream in first.names[first.rank - node.op.mixes_last :]:
        return UNBOUNDED
    return node.op.reach() if not node.op.reads() or is_along_stream(node) else POINTWISE


def is_along_stream(node: Node) -> bool:
    """Whether an op that reads positions or documents has been given them (see `Op.reads`)."""
    types = [v.type for v in node.inputs]
    own = len([t for t in node.op.tensors if not t.endswith("?")])
    return len(types) >= own + sum(map(len, (node.op.parameters(*types), node.op.buffers(*types), node.op.reads())))


def reach(graph: Graph) -> dict[Value, Reach]:
    """For every value of a graph (those in regions as of the last run) its reach into the inputs."""
    found: dict[Value, Reach] = dict.fromkeys(graph.inputs, POINTWISE)
    _visit(graph, found, graph.stream)
    return found


def _visit(graph: Graph, found: dict[Value, Reach], stream: str | None) -> None:
    for node in graph.nodes:
        given = [found[v] for v in node.inputs]
        if isinstance(node.op, Repeat) and node.region:
            results = _repeat(node.op, node.region, given, found, stream)
        else:
            total = _join(given)
            own = node_reach(node, stream)
            results = [Reach(_plus(total.back, own.back), _plus(total.ahead, own.ahead))] * len(node.outputs)
        found.update(zip(node.outputs, results, strict=True))


def _repeat(
    op: Repeat, region: Graph, given: list[Reach], found: dict[Value, Reach], stream: str | None
) -> list[Reach]:
    carries, rest = given[: op.carries], given[op.carries :]
    stacked = [POINTWISE] * (len(region.outputs) - op.carries)
    for _ in range(op.count):
        found.update(zip(region.inputs, [*carries, *rest], strict=True))
        _visit(region, found, stream)
        outs = [found[v] for v in region.outputs.values()]
        stacked = [_join(pair) for pair in zip(stacked, outs[op.carries :])]
        if outs[: op.carries] == carries:
            break
        carries = outs[: op.carries]
    return [*carries, *stacked]


def _join(parts: list[Reach] | tuple[Reach, ...]) -> Reach:
    back = [p.back for p in parts] or [0]
    ahead = [p.ahead for p in parts] or [0]
    return Reach(
        None if None in back else max(b for b in back if b is not None),
        None if None in ahead else max(a for a in ahead if a is not None),
    )


def _plus(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def require_causal(graph: Graph, purpose: str = "has no step form") -> None:
    """Raises: SpecError (PF0340) that names every op which looks ahead, with its path and place."""
    if graph.stream is None:
        raise SpecError(
            Diagnostic("PF0340", f"`{graph.name}` {purpose}: none of its dims is a stream", None,
                       help="name the sequence axis `time`, or say `stream: ...` in the graph")
        )  # fmt: skip
    found = []
    for node in graph.walk():
        ahead = node_reach(node, graph.stream).ahead
        if ahead != 0:
            far = f"{ahead} ahead" if ahead is not None else "ahead without bound"
            found.append(_refusal(graph, node, f"`{node.op.name}` looks {far} along `{graph.stream}`", purpose))
    if found:
        raise SpecError(found)


def require_state(graph: Graph, purpose: str = "has no step form") -> None:
    """Raises: SpecError (PF0341) for every op that looks back and keeps no state for it."""
    found = []
    for node in graph.walk():
        back = node_reach(node, graph.stream).back
        if back != 0 and node.op.streaming(*(v.type for v in node.inputs)) is None:
            what = f"`{node.op.name}` looks back along `{graph.stream}` and keeps no state"
            found.append(_refusal(graph, node, what, purpose, "PF0341"))
    if found:
        raise SpecError(found)


def _refusal(graph: Graph, node: Node, what: str, purpose: str, code: str = "PF0340") -> Diagnostic:
    notes = [Note(f"in {node.origin.path}")] if node.origin.path else []
    if node.origin.place:
        notes.append(Note(f"at {node.origin.place}"))
    return Diagnostic(code, f"{what}, so `{graph.name}` {purpose}", None, notes=tuple(notes))


def total_reach(graph: Graph) -> Mapping[str, Reach]:
    """The reach of every output of a graph."""
    found = reach(graph)
    return {name: found[v] for name, v in graph.outputs.items()}
