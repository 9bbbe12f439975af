"""Reverse-mode differentiation of a graph, op by op, as nodes of the same graph.

An op's own `gradient` says what flows back through it; one that has none is differentiated through its `decompose`,
whose values are computed once more for it. A repetition runs backwards in a repetition of its own (`_repeat`).
What comes out is an ordinary graph: every backend runs it, an artefact may hold it, and it can be differentiated again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from planform.spec import Diagnostic, Note, SpecError

from .ir import Argument, Builder, Graph, Node, Origin, Value, copy, stacked_dim
from .ops.broadcast import filled
from .ops.control import Repeat
from .ops.elementwise import Add

_END = ".gradient"
EXCLUDED: dict[str, str] = {
    "advance": "gives integers",
    "attend": "its gradient is the backend's: no loss within a graph goes through attention yet",
    "attend_cached": "a step form is never trained",
    "conv1d": "its gradient is the backend's: no loss within a graph goes through it yet",
    "conv1d_cached": "a step form is never trained",
    "block_linear": "its gradient is the backend's: no loss within a graph goes through it yet",
    "cross_entropy": "its gradient is the backend's: write it with `softmax`, `log` and `mean` within a graph",
    "linear_cross_entropy": "made by a fusion of a whole training graph, after all gradients",
    "linear_recurrence": "its gradient is the backend's: no loss within a graph goes through it yet",
    "linear_recurrence_cached": "a step form is never trained",
    "log_decay": "its gradient is the backend's: no loss within a graph goes through it yet",
    "last": "a step form is never trained",
    "rope": "its gradient is the backend's: no loss within a graph goes through attention yet",
}
"""Ops that floats go through and that a graph can't differentiate, and why."""


def gradient(b: Builder, y: Value, x: Sequence[Value]) -> list[Value | None]:
    """Adds to a graph under construction the gradients of sum(y) with respect to values in it; None for those that y
    doesn't depend on.

    Raises: SpecError (PF0343) where an op on the way has no gradient.
    """
    before = b.origin
    try:
        return _back(b, b.nodes, {y: filled(b, 1.0, y.type)}, x)
    finally:
        b.origin = before


def with_gradients(graph: Graph, of: str, to: Sequence[str]) -> Graph:
    """The graph with further outputs `d NAME`, the gradients of the sum of output `of` with respect to inputs.

    Raises: SpecError as `gradient` does; ValueError where the output doesn't depend on an input.
    """
    own = copy(graph)
    b = Builder.beside(own)
    b.inputs, b.nodes = list(own.inputs), list(own.nodes)
    inputs = {v.name: v for v in own.inputs}
    found = gradient(b, own.outputs[of], [inputs[n] for n in to])
    outputs = dict(own.outputs)
    for name, g in zip(to, found):
        if g is None:
            raise ValueError(f"`{of}` doesn't depend on `{name}`")
        outputs[f"d {name}"] = g
    return b.finish(outputs)


def _back(b: Builder, nodes: Sequence[Node], seeds: Mapping[Value, Value], to: Sequence[Value]) -> list[Value | None]:
    """From gradients with respect to results of `nodes` those with respect to values `to` that they read."""
    nodes = list(nodes)
    moving = _depend(nodes, to)
    grads: dict[Value, Value] = dict(seeds)
    for node in reversed(nodes):
        if not any(v in grads for v in node.outputs) or not any(v in moving for v in node.inputs):
            continue
        b.origin = _origin(node.origin)
        for v, g in zip(node.inputs, _through(b, node, grads, moving), strict=True):
            if g is not None:
                assert g.type == v.type, f"`{node.op.name}` has the gradient {g.type} of {v.type}"
                grads[v] = b.emit(Add(), grads[v], g) if v in grads else g
    return [grads.get(v) for v in to]


def _origin(forward: Origin) -> Origin:
    path = forward.path
    return forward if path.endswith(_END) else Origin(f"{path}{_END}" if path else _END[1:], forward.place)


def _depend(nodes: Sequence[Node], on: Sequence[Value]) -> set[Value]:
    """The floats among the results of nodes that depend on some values, and those."""
    found = set(on)
    for node in nodes:
        if any(v in found for v in node.inputs):
            found.update(v for v in node.outputs if v.type.is_float)
    return found


def _through(b: Builder, node: Node, grads: Mapping[Value, Value], moving: set[Value]) -> Sequence[Value | None]:
    """What flows back to each input of a node; None to those that don't move."""
    if isinstance(node.op, Repeat):
        return _repeat(b, node, grads, moving)
    own = node.op.gradient(b, node, grads[node.output]) if len(node.outputs) == 1 else None
    if own is not None:
        return [make() if make and v in moving else None for v, make in zip(node.inputs, own, strict=True)]
    start = len(b.nodes)
    made = node.op.decompose(b, *node.inputs)
    if made is None:
        raise SpecError(_refusal(node))
    results = made if isinstance(made, tuple) else (made,)
    seeds = {r: grads[v] for r, v in zip(results, node.outputs) if v in grads}
    want = [v for v in node.inputs if v in moving]
    found = dict(zip(want, _back(b, b.nodes[start:], seeds, want)))
    return [found.pop(v, None) for v in node.inputs]  # an input given twice gets all of it once


# ---- repetitions ----


@dataclass
class _Region:
    """The body of a repetition backwards, in the making."""

    builder: Builder
    inputs: list[tuple[Value, Value]]  # (what the repetition is given, the region's argument)

    def take(self, outside: Value, like: Value, hint: str) -> Value:
        """An argument of the type of `like` for a value from outside."""
        inner: Value = self.builder.add(Argument(hint, like.type, like.origin))
        self.inputs.append((outside, inner))
        return inner


def _repeat(b: Builder, node: Node, grads: Mapping[Value, Value], moving: set[Value]) -> Sequence[Value | None]:
    """A repetition backwards: from the last run to the first, the carries' gradients are its carries, those of
    invariants add up, those of stacks are stacked again.

    What the runs made and their gradients need is kept by the forward repetition, in stacks that it also gives.
    """
    op, region = node.op, node.region
    assert isinstance(op, Repeat) and region is not None
    results = list(region.outputs.values())
    inside = _moving_arguments(op, region, [v in moving for v in node.inputs])
    alive = [i for i in range(op.carries) if region.inputs[i] in inside]

    # The body forwards and backwards in one piece, from which the second part is cut.
    b2 = Builder.beside(region)
    forward = len(region.nodes)
    b2.nodes = list(region.nodes)
    seeds: dict[Value, Value] = {}
    down: dict[int, Value] = {}  # by carry, the gradient that comes from the run after
    stacked: list[tuple[Value, Value]] = []  # (the gradients of a stacked result, one run's)
    for i in alive:
        down[i] = Argument(b2.fresh("above"), region.inputs[i].type)
        seeds[results[i]] = b2.emit(Add(), seeds[results[i]], down[i]) if results[i] in seeds else down[i]
    for outside, inner in zip(node.outputs[op.carries :], results[op.carries :]):
        if outside in grads and inner.type.is_float:
            one = Argument(b2.fresh("above"), inner.type)
            stacked.append((grads[outside], one))
            seeds[inner] = b2.emit(Add(), seeds[inner], one) if inner in seeds else one
    want = [v for v in region.inputs if v in inside]
    found = dict(zip(want, _back(b2, b2.nodes[:forward], seeds, want)))
    backward = b2.nodes[forward:]

    # Its inputs: gradients from above, sums so far, stacks and invariants of the forward repetition, what it keeps.
    place = {v: i for i, v in enumerate(region.inputs)}
    invariant = [v for v in want if place[v] >= op.carries + op.stacks and found[v] is not None]
    sums = {v: Argument(b2.fresh("sum"), v.type) for v in invariant}
    carried = [*(down[i] for i in alive), *sums.values()]
    start = [
        *(_or_zeros(b, grads.get(node.outputs[i]), node.outputs[i]) for i in alive),
        *(filled(b, 0.0, v.type) for v in invariant),
    ]
    slices, shared = list(stacked), list[tuple[Value, Value]]()
    needs = _needs(backward, [*(g for v in want if (g := found[v]) is not None)], [*carried, *(i for _, i in stacked)])
    again: list[Node] = []
    same: dict[Value, Value] = {}
    made = {v: n for n in region.nodes for v in n.outputs}
    for v in needs:
        if v in place and op.carries <= place[v]:
            inner = Argument(b2.fresh(v.name), v.type, v.origin)
            (slices if place[v] < op.carries + op.stacks else shared).append((node.inputs[place[v]], inner))
            same[v] = inner
        elif v in made and not made[v].inputs:  # a constant is made again
            twin = replace(made[v], outputs=tuple(replace(o, name=b2.fresh(o.name)) for o in made[v].outputs))
            again.append(twin)
            same[v] = twin.outputs[made[v].outputs.index(v)]
        else:
            inner = Argument(b2.fresh(v.name), v.type, v.origin)
            slices.append((_kept(b, node, v), inner))
            same[v] = inner

    # Its results: the carries' gradients before this run, the sums with this run's, the slices of stacks' gradients.
    def result(v: Value) -> Value:
        return _or_zeros(b2, found[v], v)

    b2.nodes = backward
    outs = [result(region.inputs[i]) for i in alive]
    outs += [b2.emit(Add(), sums[v], result(v)) for v in invariant]
    of_stacks = [v for v in want if op.carries <= place[v] < op.carries + op.stacks and found[v] is not None]
    outs += [result(v) for v in of_stacks]
    nodes = tuple(replace(n, inputs=tuple(same.get(v, v) for v in n.inputs)) for n in [*again, *backward])
    body = Graph(
        f"{region.name}.gradient",
        (*carried, *(i for _, i in slices), *(i for _, i in shared)),
        nodes,
        {str(i): same.get(v, v) for i, v in enumerate(outs)},
        region.stream,
    )
    back = replace(op, carries=len(carried), stacks=len(slices), reverse=not op.reverse)
    given = [*start, *(o for o, _ in slices), *(o for o, _ in shared)]
    answers: list[Value] = list(b.emit(back, *given, region=body, hint="gradient"))
    names = [*(region.inputs[i] for i in alive), *invariant, *of_stacks]
    flowed = dict(zip(names, answers, strict=True))
    return [flowed.get(v) for v in region.inputs]


def _moving_arguments(op: Repeat, region: Graph, given: Sequence[bool]) -> set[Value]:
    """The arguments of a region that move, where some of what it is given does: a carry also when a run makes it."""
    moving = {v for v, m in zip(region.inputs, given) if m and v.type.is_float}
    results = list(region.outputs.values())
    while True:
        reached = _depend(region.nodes, list(moving))
        more = {v for v, r in zip(region.inputs[: op.carries], results) if r in reached and v.type.is_float} - moving
        if not more:
            return moving
        moving |= more


def _needs(nodes: Sequence[Node], results: Sequence[Value], own: Sequence[Value]) -> list[Value]:
    """Values that nodes and results use and that are made elsewhere, in order of first use."""
    defined = set(own)
    found: dict[Value, None] = {}
    for node in nodes:
        found.update((v, None) for v in node.inputs if v not in defined)
        defined.update(node.outputs)
    found.update((v, None) for v in results if v not in defined)
    return list(found)


def _kept(b: Builder, node: Node, v: Value) -> Value:
    """A value of a repetition's body, of all its runs: a stacked result, added if it isn't one."""
    op, region = node.op, node.region
    assert isinstance(op, Repeat) and region is not None
    for outside, inner in zip(node.outputs[op.carries :], list(region.outputs.values())[op.carries :]):
        if inner is v:
            return outside
    stack = Value(b.fresh(v.name), v.type.with_dims((stacked_dim(op.count), *v.type.dims)), v.origin)
    positional = list(region.outputs) == [str(i) for i in range(len(region.outputs))]
    region.outputs[str(len(region.outputs)) if positional else _unused(region, v.name)] = v
    node.outputs = (*node.outputs, stack)
    return stack


def _unused(region: Graph, name: str) -> str:
    while name in region.outputs:
        name += "'"
    return name


def _or_zeros(b: Builder, g: Value | None, like: Value) -> Value:
    return g if g is not None else filled(b, 0.0, like.type)


def _refusal(node: Node) -> Diagnostic:
    notes = [Note(f"in {node.origin.path}")] if node.origin.path else []
    if node.origin.place:
        notes.append(Note(f"at {node.origin.place}"))
    why = EXCLUDED.get(node.op.name, "it has neither a `gradient` nor a `decompose`")
    return Diagnostic("PF0343", f"no gradient can be taken through `{node.op.name}`: {why}", None, notes=tuple(notes))
