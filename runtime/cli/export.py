"""`planform export`: the trained model as an artefact for plain onnxruntime."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, GraphName, Set

EPILOG = "Example: planform export runs/small --to onnx --out runs/small/onnx"


class Target(StrEnum):
    onnx = "onnx"
    genai = "genai"
    huggingface = "huggingface"


def add(app: typer.Typer) -> None:
    app.command(epilog=EPILOG)(export)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a training run.")],
    to: Annotated[
        Target, typer.Option("--to", help="For onnxruntime; for it and onnxruntime-genai; or a checkpoint.")
    ] = Target.onnx,
    folder: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Where to. [default: RUN/onnx, RUN/huggingface]")
    ] = None,
    graph: GraphName = None,
    overrides: Set = None,
    positions: Annotated[int, typer.Option("--positions", min=8, help="The longest stream it is made for.")] = 8192,
    step: Annotated[int | None, typer.Option("--step", min=0, help="Of the checkpoint. [default: the newest]")] = None,
    as_json: AsJson = False,
) -> None:
    """Export a trained model: the model file, its weights, a contract and a fixture to check it by."""
    from ..exporting import export_huggingface, export_run
    from .console import out, print_json, size

    if to is Target.huggingface:
        target = export_huggingface(run, folder or run / to.value, step, tuple(overrides or ()))
        if as_json:
            print_json({"folder": str(target)})
        else:
            out().print(f"[bold green]✓[/] {target}: a checkpoint in Hugging Face's layout")
        return
    found = export_run(
        run, folder or run / to.value, graph=graph, positions=positions, step=step, overrides=tuple(overrides or ()),
        genai=to is Target.genai,
    )  # fmt: skip
    if as_json:
        print_json(found)
        return
    console = out()
    form = "one file for prompts and for token by token" if found["form"] == "step" else "for whole sequences"
    console.print(f"[bold green]✓[/] {found['folder']}: {form}, {size(found['bytes'])}")
    if found["why"]:
        console.print(f"  [dim]{found['why']}[/]", soft_wrap=True)
    for name, n in found["files"].items():
        console.print(f"  {name:<18} [dim]{size(n)}[/]")
