"""`planform demo`: the main job from end to end, on real text."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import label

if TYPE_CHECKING:
    from rich.console import Console

EPILOG = "Example: planform demo --out runs/demo"

SPEC = "gemma2@small"
MESH = "data=2"
PROMPT = "def __init__(self, "

Figures = dict[str, Any]


def add(app: typer.Typer) -> None:
    app.command(epilog=EPILOG)(demo)


def demo(
    folder: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Everything goes there.")] = Path("runs/demo"),
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Training steps, to make it shorter.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one line of JSON.")] = False,
) -> None:
    """Check, train on two replicas, evaluate, export, verify and generate: everything, in a few minutes."""
    from .console import err, out

    begun = time.monotonic()
    console = err() if as_json else out()
    spec = _check(console)
    figures = {
        **_train(console, spec, folder, steps),
        **_evaluate(console, folder),
        **_export(console, folder),
        **_verify(console, folder),
        "text": _generate(console, folder),
    }
    seconds = round(time.monotonic() - begun)
    console.print(f"\n[bold]all of it in {seconds // 60} min {seconds % 60} s[/], in {folder}")
    if as_json:
        print(json.dumps({**figures, "demo_seconds": seconds, "folder": str(folder)}))
    if not figures["verified"]:
        raise typer.Exit(1)


def _title(console: Console, text: str, command: str) -> None:
    console.print(f"\n[bold]{text}[/]  [dim]planform {command}[/]")


def _check(console: Console) -> Any:
    from planform.compiler.analyses.cost import count_parameters
    from planform.compiler.check import check
    from planform.compiler.elaborate import elaborate
    from planform.spec import SpecError, load

    from .console import count

    _title(console, "1  check", f"check {SPEC} && planform show {SPEC}")
    spec = load(SPEC)
    found = check(spec, {"data": 2})
    if any(d.severity == "error" for d in found):
        raise SpecError(found)
    n = count_parameters(elaborate(spec))
    console.print(f"   {spec.source.name}: no errors; {label(spec)} has {count(n.total)} parameters")
    return spec


def _train(console: Console, spec: Any, folder: Path, steps: int | None) -> Figures:
    from ..mesh import parse_mesh
    from ..train import train

    _title(console, "2  train", f"train {SPEC} --out {folder} --mesh {MESH}")
    console.print("   on the source of Python's standard library, on two replicas")
    result = train(spec, folder, mesh=parse_mesh(MESH), steps=steps)
    if result.signal:
        raise typer.Exit(result.exit_code)
    console.print(f"   {result.step} steps, {result.tokens_per_second:,.0f} tokens/s")
    return {"steps": result.step, "tokens_per_second": round(result.tokens_per_second)}


def _evaluate(console: Console, folder: Path) -> Figures:
    from ..evaluate import evaluate_run

    _title(console, "3  evaluate", f"eval {folder}")
    found = evaluate_run(folder)
    mine, bigram = found["bits_per_byte"], found["bigram_bits_per_byte"]
    console.print(f"   held-out text: [bold]{mine:.3f}[/] bits per byte; a bigram model of the same text: {bigram:.3f}")
    return {"bits_per_byte": mine, "bigram_bits_per_byte": bigram}


def _export(console: Console, folder: Path) -> Figures:
    from ..exporting import export_run
    from .console import size

    _title(console, "4  export", f"export {folder} --to onnx")
    found = export_run(folder, folder / "onnx")
    console.print(f"   {found['folder']}: {size(found['bytes'])}, with a contract and a fixture to check it by")
    return {"artefact_bytes": found["bytes"]}


def _verify(console: Console, folder: Path) -> Figures:
    from planform.compiler.elaborate import elaborate

    from ..run import parameters_of_run, spec_of_run
    from ..verify import verify
    from .console import print_diagnostics
    from .verify import artefact, diagnostic, losses

    _title(console, "5  verify", f"verify {folder} --onnx {folder}/onnx")
    spec = spec_of_run(folder)
    graph = elaborate(spec)
    contract = artefact(folder / "onnx")
    report = verify(graph, parameters_of_run(folder), losses=losses(spec), artefact=folder / "onnx")
    worst: dict[str, float] = {}
    for a in report.agreements:
        worst[a.backend] = max(a.error, worst.get(a.backend, 0.0))
    names = {"xla": "XLA", "onnx": "ONNX graph", "artefact": "exported file"}
    for backend, error in worst.items():
        console.print(f"   {names[backend]:<14} agrees with the float64 reference within {error:.0e}")
    for problem in contract["problems"]:
        console.print(f"   [bold red]✗[/] {problem}")
    if not contract["problems"]:
        console.print(f"   {'contract':<14} holds, and so does its fixture")
    print_diagnostics([diagnostic(d, spec) for d in report.divergences], console)
    return {
        "verified": report.holds and not contract["problems"],
        "errors": {k: float(f"{v:.2e}") for k, v in worst.items()},
    }


def _generate(console: Console, folder: Path) -> str:
    from ..generation.model import open_model
    from ..generation.sampling import Sampling
    from ..generation.writing import write

    command = f"generate {folder}/onnx --prompt '{PROMPT}'"
    _title(console, "6  generate", command)
    model = open_model(folder / "onnx")
    pieces = write(model, [model.prompt(PROMPT)], 240, Sampling(temperature=0.5, seed=0))
    text = PROMPT + "".join(piece.text for piece in pieces)
    for line in text.split("\n"):
        console.print("   " + line, markup=False, highlight=False, soft_wrap=True)
    return text
