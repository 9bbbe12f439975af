"""What `check` says of a spec's `sharding` section: what can't work, and what silently would not happen."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from planform.spec import Diagnostic, Note, ShardingRule, Spec, did_you_mean

from .analyses.sharding import Conflict, conflicts, indivisible, normalise, spec_for
from .ir import Graph, Value, Weight


def check_sharding(
    spec: Spec, graphs: Iterable[Graph], mesh: Mapping[str, int] | None = None, batch: int | None = None
) -> list[Diagnostic]:
    """Findings on the rules, over all tensors of the graphs.

    mesh   sizes of the axes, where they are known: then every dim must be a multiple of its devices (PF0402)
    batch  examples that one step takes, in place of the symbolic `batch`

    A rule that loses its axis to an earlier one in a parameter, or wherever it could apply, is a warning
    (PF0401); in activations alone losing is how FSDP works. An axis of the mesh without a rule is one too
    (PF0403).
    """
    graphs = list(graphs)
    return [*_check(spec, graphs, mesh, batch, None), *_check_used(spec, graphs, mesh)]


def _check_used(spec: Spec, graphs: Sequence[Graph], mesh: Mapping[str, int] | None) -> Iterable[Diagnostic]:
    """What can't work in the specs that this one uses, each by its own rules; their warnings are theirs."""
    for used in spec.uses.values():
        found = _check(used.spec, graphs, mesh, None, used.name)
        yield from (d for d in found if d.severity == "error")


def _check(
    spec: Spec,
    graphs: Iterable[Graph],
    mesh: Mapping[str, int] | None,
    batch: int | None,
    used: str | None,
) -> list[Diagnostic]:
    rules = spec.sharding
    found = list(_twice(rules))
    if found or not rules and not mesh:
        return found
    ordered = normalise([(r.dim, r.axes) for r in rules])
    axes = list(mesh) if mesh else list(dict.fromkeys(a for r in rules for a in r.axes))
    by_dim = {r.dim: r for r in rules}
    tallies = {r.dim: _Tally() for r in rules}
    uneven: dict[str, Diagnostic] = {}
    for value in _values(graphs, used, spec.uses):
        split = spec_for(value.type, ordered, axes)
        lost = {c.dim: c for c in conflicts(value.type, ordered, axes)}
        for dim, at in zip(value.type.dims, split):
            if dim.name not in tallies:
                continue
            tally = tallies[dim.name]
            if dim.name in lost:
                tally.lose(lost[dim.name], value)
            elif at:
                tally.held = True
        if mesh:
            for bad in indivisible(value.type, ordered, mesh):
                uneven.setdefault(bad.dim, _indivisible(spec, by_dim[bad.dim], bad.size, mesh, value))
    if mesh and batch and "batch" in by_dim and "batch" not in uneven:
        rule = by_dim["batch"]
        if batch % _devices(rule, mesh):
            uneven["batch"] = _indivisible(spec, rule, batch, mesh, None)
    for name, tally in tallies.items():
        conflict, where = tally.parameter or (None if tally.held else tally.anywhere) or (None, None)
        if conflict is not None and where is not None:
            found.append(_conflict(by_dim[name], by_dim[conflict.taken_by], conflict, where))
    found += uneven.values()
    known = {a for r in rules for a in r.axes}
    for axis in mesh or ():
        if axis not in known:
            found.append(_unused(spec, axis, sorted(known)))
    return found


@dataclass
class _Tally:
    """Where a rule lost its axis, and whether it ever got it."""

    held: bool = False
    parameter: tuple[Conflict, Value] | None = None
    anywhere: tuple[Conflict, Value] | None = field(default=None)

    def lose(self, conflict: Conflict, value: Value) -> None:
        self.anywhere = self.anywhere or (conflict, value)
        if isinstance(value, Weight):
            self.parameter = self.parameter or (conflict, value)


def _values(graphs: Iterable[Graph], used: str | None, others: Collection[str]) -> Iterable[Value]:
    """The values of a used spec, or those of none of the `others`."""
    for graph in graphs:
        for value in (*graph.inputs, *(v for node in graph.walk() for v in node.outputs)):
            owner = value.origin.path.partition(".")[0]
            if owner == used if used else owner not in others:
                yield value


def _devices(rule: ShardingRule, mesh: Mapping[str, int]) -> int:
    n = 1
    for axis in rule.axes:
        n *= mesh.get(axis, 1)
    return n


def _twice(rules: Sequence[ShardingRule]) -> Iterable[Diagnostic]:
    for rule in rules:
        again = [a for i, a in enumerate(rule.axes) if a in rule.axes[:i]]
        if again:
            yield Diagnostic("PF0404", f"`{rule.dim}` is split over `{again[0]}` twice", rule.axes_span,
                             help="name each mesh axis once")  # fmt: skip


def _set_at(spec: Spec, dim: str, size: int) -> Note | None:
    if dim not in spec.dims:
        return None
    d = spec.dims[dim]
    return Note(
        f"{dim} = {size}, set by --set" if d.origin == "--set" else f"{dim} = {size}, set at line {d.span.line}"
    )


def _indivisible(spec: Spec, rule: ShardingRule, size: int, mesh: Mapping[str, int], value: Value | None) -> Diagnostic:
    over = [f"{a}={mesh[a]}" for a in rule.axes if mesh.get(a, 1) > 1]
    devices = _devices(rule, mesh)
    fits = [n for n in range(2, min(size, 4 * devices) + 1) if size % n == 0]
    near = sorted(sorted(fits, key=lambda n: (abs(n - devices), n))[:2])
    notes = [_set_at(spec, rule.dim, size)]
    if value is not None and value.origin.path:
        notes.append(Note(f"in {value.origin.path}"))
    if value is None:
        span = spec.train.spans.get("batch") if spec.train else None
        notes.append(Note(f"a step takes {size} examples", span))
    help = f"{' or '.join(map(str, near))} devices would do" if near else "leave this dim whole"
    return Diagnostic(
        "PF0402", f"`{rule.dim}` of size {size} can't be split over {devices} devices ({', '.join(over)})",
        rule.span, notes=tuple(n for n in notes if n), help=help,
    )  # fmt: skip


def _conflict(rule: ShardingRule, winner: ShardingRule, conflict: Conflict, where: Value) -> Diagnostic:
    return Diagnostic(
        "PF0401",
        f"`{rule.dim}` stays whole where `{conflict.taken_by}` has the mesh axis `{conflict.axis}`",
        rule.axes_span,
        notes=(
            Note(f"`{where.origin.path or where.name}` is {where.type}"),
            Note(f"`{conflict.taken_by}` comes first", winner.span),
        ),
        help="an axis serves once in a tensor: give one of the two another axis, or change their order",
        severity="warning",
    )


def _unused(spec: Spec, axis: str, known: Sequence[str]) -> Diagnostic:
    help = did_you_mean(axis, known) or (f"the rules name {', '.join(known)}" if known else "add a `sharding` section")
    return Diagnostic("PF0403", f"the mesh axis `{axis}` splits nothing: no rule names it", spec.spans.get("sharding"),
                      help=help, severity="warning")  # fmt: skip
