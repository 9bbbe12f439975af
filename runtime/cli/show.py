"""`planform show`: the tree of a model's blocks, what it holds and what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import AsJson, GraphName, Set, Size, SpecName, label, load_spec

if TYPE_CHECKING:
    from rich.console import Console

    from planform.compiler.ir import Graph

    from ..outline import Block

EPILOG = "Example: planform show gemma2@2b"

CONTEXT = 4096


def add(app: typer.Typer) -> None:
    app.command(epilog=EPILOG)(show)


def show(
    spec: SpecName,
    size: Size = None,
    overrides: Set = None,
    graph: GraphName = None,
    context: Annotated[
        int, typer.Option("--context", min=1, help="Entries of the sequence that FLOPs and state are given for.")
    ] = CONTEXT,
    as_json: AsJson = False,
) -> None:
    """Show a model's blocks with shapes, parameters, FLOPs and state. Nothing is allocated."""
    from planform.compiler.elaborate import elaborate

    from .console import print_json

    loaded = load_spec(spec, size, overrides)
    names = [graph] if graph else list(loaded.graphs) or [None]  # type: ignore[list-item]
    graphs = [elaborate(loaded, name) for name in names]
    if as_json:
        found = [facts(g, context) for g in graphs]
        first = {"spec": label(loaded), **found[0]}
        print_json(first if len(found) == 1 else {"spec": label(loaded), "graphs": {f["graph"]: f for f in found}})
        return
    for g in graphs:
        _print(g, label(loaded), context)


def facts(graph: Graph, context: int = CONTEXT) -> dict[str, Any]:
    """What there is to know about a graph, for tools: counts are exact."""
    from planform.compiler.analyses.cost import count_parameters
    from planform.compiler.ir import Input

    from ..outline import outline

    counted = count_parameters(graph)
    return {
        "graph": graph.name,
        "inputs": {v.name: str(v.type) for v in graph.of_kind(Input)},
        "outputs": {k: str(v.type) for k, v in graph.outputs.items()},
        "parameters": {
            "total": counted.total,
            "embedding": counted.embedding,
            "outside_embedding": counted.outside_embedding,
        },
        "buffers": counted.buffers,
        **costs(graph, context),
        "blocks": _json(outline(graph)),
    }


def costs(graph: Graph, context: int = CONTEXT) -> dict[str, Any]:
    """FLOPs of one entry of a sequence of `context`, forward only, and the bytes of streaming state of one stream."""
    from planform.compiler.analyses.cost import flops_per_token, state_size
    from planform.compiler.passes.stateful import stateful
    from planform.compiler.size import evaluate, symbols
    from planform.spec import SpecError

    found: dict[str, Any] = {"context": context, "flops_per_token": None, "state_bytes": None}
    if (flops := flops_per_token(graph)) is not None:
        env = {name: context if name == graph.stream else 1 for name in symbols(flops.flops)}
        found["flops_per_token"] = evaluate(flops.flops, env)
    try:
        step = stateful(graph)
    except SpecError:
        return found  # not causal: it has no step form
    state = state_size(step)
    at = state.at(context)
    found["state_bytes"] = {"per_token": state.per_token, "fixed": state.fixed, "at_context": at}
    found["states"] = {s.path: str(s.type) for s in step.states}
    return found


def _json(block: Block) -> dict[str, Any]:
    return {
        "path": block.path,
        "op": block.op.name if block.op else None,
        "layers": block.layers,
        "result": str(block.result) if block.result else None,
        "parameters": block.parameters,
        "place": block.place,
        "blocks": [_json(c) for c in block.children.values()],
    }


def _print(graph: Graph, title: str, context: int) -> None:
    from rich.table import Table
    from rich.text import Text

    from planform.compiler.ir import Input

    from ..outline import outline, same
    from .console import out

    console = out()
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")

    def row(block: Block, lead: str, last: bool, text: str = "") -> None:
        branch = "" if lead == "" and text == "root" else ("└─ " if last else "├─ ")
        name = Text(lead + branch, style="dim")
        name.append(block.name, style="bold" if block.children else "")
        op = block.op.name if block.op else ""
        if block.layers > 1:
            name.append(f" × {block.layers}", style="magenta")
        if op and op != block.name.rstrip("_0123456789"):
            name.append(f"  {op}", style="dim")
        shape = Text(str(block.result) if block.result and text != "root" else "", style="cyan")
        table.add_row(name, shape, f"{block.parameters:,}" if block.parameters else "")

    def visit(block: Block, lead: str) -> None:
        children = list(block.children.values())
        shown: list[Block] = []
        for i, child in enumerate(children):
            last = i == len(children) - 1
            inner = lead + ("   " if last else "│  ")
            like = next(((s, d) for s in shown if (d := same(s, child)) is not None and s.children), None)
            row(child, lead, last)
            if like is None:
                shown.append(child)
                visit(child, inner)
                continue
            other, differences = like
            but = "; ".join(f"{p or other.name}: {t}" for p, t in differences.items())
            table.add_row(Text(inner + f"like {other.name}" + (f", but {but}" if but else ""), style="dim"), "", "")

    root = outline(graph)
    given = ", ".join(f"{v.name} {v.type}" for v in graph.of_kind(Input) if v.default is None)
    results = ", ".join(f"{k} {v.type}" for k, v in graph.outputs.items())
    console.print(Text.assemble((f"{title} ", "bold"), (f"{given} → {results}", "cyan")), soft_wrap=True)
    row(root, "", True, "root")
    visit(root, "")
    console.print(table)
    _print_costs(console, graph, context)


def _print_costs(console: Console, graph: Graph, context: int) -> None:
    from planform.compiler.analyses.cost import count_parameters

    from .console import count, size

    n, found = count_parameters(graph), costs(graph, context)
    console.print(f"\nparameters         [bold]{n.total:,}[/]  {count(n.total)}")
    if n.embedding:
        console.print(f"  embedding        {n.embedding:,}")
        console.print(f"  outside of it    [bold]{n.outside_embedding:,}[/]  {count(n.outside_embedding)}")
    if n.buffers:
        console.print(f"buffers            {n.buffers:,}")
    if found["flops_per_token"] is not None:
        console.print(f"FLOPs per token    {count(found['flops_per_token'])} in a sequence of {context:,}, forward")
    if state := found["state_bytes"]:
        ring = f" and {size(state['fixed'])} once" if state["fixed"] else ""
        console.print(
            f"state of a stream  {size(state['per_token'])} per token{ring}, "
            f"{size(state['at_context'])} after {context:,} tokens"
        )
    console.print()
