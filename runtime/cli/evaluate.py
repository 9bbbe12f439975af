"""`planform eval`: a trained model on held-out data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, Set, With

EPILOG = "Example: planform eval runs/small --batches 32"


def add(app: typer.Typer) -> None:
    app.command("eval", epilog=EPILOG)(evaluate)


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a training run.")],
    files: Annotated[
        list[Path] | None,
        typer.Option("--files", metavar="PATH", help="Other data. [default: the held-out part of the run's own]"),
    ] = None,
    batches: Annotated[int | None, typer.Option("--batches", min=1, help="Batches of the run's size, at most.")] = None,
    step: Annotated[int | None, typer.Option("--step", min=0, help="Of the checkpoint. [default: the newest]")] = None,
    overrides: Set = None,
    uses: With = None,
    as_json: AsJson = False,
) -> None:
    """Measure a trained model on data it never saw; on text, beside a bigram model counted on what it trained on."""
    from ..evaluate import evaluate_run
    from ..progress import number_text
    from ..uses import parse_with
    from .console import out, print_json

    found = evaluate_run(
        run,
        files=list(files) if files else None,
        batches=batches,
        step=step,
        overrides=tuple(overrides or ()),
        uses=parse_with(uses or ()),
    )
    if as_json:
        print_json({"run": str(run), **found})
        return
    console = out()
    console.print(f"step {found['step']}")
    for name, value in found.items():
        if name != "step":
            console.print(f"  {name.replace('_', ' '):<22} {number_text(value)}")
