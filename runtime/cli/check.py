"""`planform check`: all findings on specs, before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .options import AsJson, Set, Size, label

if TYPE_CHECKING:
    from planform.spec import Diagnostic, Spec

EPILOG = "Example: planform check gemma2@2b --mesh data=2,tensor=2"


def add(app: typer.Typer) -> None:
    app.command(epilog=EPILOG)(check)


def check(
    specs: Annotated[list[str], typer.Argument(metavar="SPEC...", help="Spec files or shipped names.")],
    size: Size = None,
    overrides: Set = None,
    mesh: Annotated[
        str | None, typer.Option("--mesh", metavar="AXIS=N,..", help="Check the sharding for this mesh.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Report everything that is wrong with specs. Exit code 1 if anything is."""
    from planform.compiler.check import check as examine
    from planform.spec import SpecError, load
    from planform.spec import as_json as diagnostic_json

    from .console import out, print_diagnostics, print_json

    devices = None
    if mesh:
        from ..mesh import parse_mesh  # jax with it

        devices = parse_mesh(mesh)
    failed = False
    reports = []
    for name in specs:
        spec: Spec | None = None
        found: list[Diagnostic]
        try:
            spec = load(name, size, tuple(overrides or ()))
            found = examine(spec, devices)
        except SpecError as e:
            found = list(e.diagnostics)
        errors = sum(d.severity == "error" for d in found)
        failed |= errors > 0
        if as_json:
            title = label(spec) if spec else name
            reports.append({"spec": title, "ok": not errors, "findings": [diagnostic_json(d) for d in found]})
            continue
        print_diagnostics(found)
        console = out()
        if errors:
            console.print(f"[bold red]✗[/] {name}: {plural(errors, 'error')}{warnings(found)}")
        elif spec:
            console.print(f"[bold green]✓[/] {label(spec)}: {contents(spec)}{warnings(found)}")
    if as_json:
        print_json(reports)
    if failed:
        raise typer.Exit(1)


def plural(n: int, what: str) -> str:
    return f"{n} {what}" + ("s" if n != 1 else "")


def warnings(found: list[Diagnostic]) -> str:
    n = sum(d.severity == "warning" for d in found)
    return f", {plural(n, 'warning')}" if n else ""


def contents(spec: Spec) -> str:
    """`1 graph (lm), training program`."""
    own = [b for b in spec.blocks.values() if not b.prelude]
    parts = [f"{plural(len(spec.graphs), 'graph')} ({', '.join(spec.graphs)})"] if spec.graphs else []
    parts.append(plural(len(own), "block"))
    if spec.train:
        parts.append("a training program")
    if spec.weights:
        parts.append(f"a weights map for {' and '.join(spec.weights.values)}")
    return ", ".join(parts)
