"""`planform explain`: what each rewrite rule did, and why one that nearly did, didn't."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .ir import Backend, Form, graph_or_loss
from .options import AsJson, Fix, GraphName, Set, Size, SpecName, label, load_spec, parse_fixed

if TYPE_CHECKING:
    from planform.compiler.passes.base import Explanation
    from planform.spec import Spec

EPILOG = "Example: planform explain gemma2@2b --backend onnx"

_MARKS = {"fired": ("✓", "green"), "near miss": ("✗", "yellow"), "unused": ("–", "dim")}


def add(app: typer.Typer) -> None:
    app.command(epilog=EPILOG)(explain)


def explain(
    spec: SpecName,
    size: Size = None,
    overrides: Set = None,
    graph: GraphName = None,
    fix: Fix = None,
    backend: Annotated[Backend, typer.Option("--backend", help="For which backend.")] = Backend.xla,
    form: Annotated[Form | None, typer.Option("--form", help="Only this form.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say which rewrites fired, which nearly did, and which condition failed, with lines of the spec."""
    from planform.compiler.passes.base import Trace
    from planform.compiler.passes.pipeline import explain as explanations

    from ..exporting import told
    from .console import out, print_json

    loaded = load_spec(spec, size, overrides)
    streams = graph_or_loss(loaded, graph).stream is not None
    forms = [Form.step] if backend is Backend.onnx else [Form.training, Form.step]
    forms = [form] if form else forms if streams else [Form.training]
    reports = []
    for each in forms:
        which = graph if backend is Backend.onnx else _graph(loaded, graph, each)
        trace = Trace()
        chosen = told(graph_or_loss(loaded, which), parse_fixed(fix), trace)
        found = trace.explanations + explanations(chosen, backend.value, each.value)
        if as_json:
            reports += [
                {"form": each.value, "rule": e.rule, "outcome": e.outcome, "op": e.op, "path": e.origin.path,
                 "place": e.origin.place, "reason": e.reason}
                for e in found
            ]  # fmt: skip
            continue
        out().print(f"[bold]{label(loaded)} on {backend.value}, {each.value} form[/]")
        _print(found)
    if as_json:
        print_json(reports)


def _graph(loaded: Spec, graph: str | None, form: Form) -> str | None:
    """In training form the loss of a program of one update, which is what is trained."""
    if graph is None and form is Form.training and loaded.train and "updates" not in loaded.train.values:
        return "train"
    return graph


def _print(found: list[Explanation]) -> None:
    """Grouped by rule, outcome and reason, so that one line speaks for all equal layers."""
    from .console import out

    console = out()
    groups: dict[tuple[str, str, str], list[Explanation]] = {}
    for e in found:
        groups.setdefault((e.rule, e.outcome, e.reason), []).append(e)
    for (rule, outcome, reason), members in groups.items():
        mark, style = _MARKS[outcome]
        console.print(f"  [{style}]{mark}[/] {rule}" + (f" [dim]{reason}[/]" if reason else ""), soft_wrap=True)
        for e in members[:4]:
            where = e.origin.path or e.op
            console.print(f"      {where}", f"[blue]{e.origin.place or ''}[/]", soft_wrap=True)
        if len(members) > 4:
            console.print(f"      [dim]and {len(members) - 4} more[/]")
    if not groups:
        console.print("  [dim]no rule matched[/]")
    console.print()
