"""`planform prepare`: an exported model that loads faster, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson

EPILOG = "Example: planform prepare runs/small/onnx"


def add(app: typer.Typer) -> None:
    app.command(epilog=EPILOG)(prepare)


def prepare(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `planform export` wrote.")],
    as_json: AsJson = False,
) -> None:
    """Lay out an exported model's weights as onnxruntime wants them on this machine, so that it loads at once.

    They are written beside the model, which stays as it is, and read only here: by the same processor and the same
    onnxruntime, while the model is the same. Tokens come as fast.
    """
    from ..preparing import prepare_artefact
    from .console import out, print_json

    found = prepare_artefact(folder)
    if as_json:
        print_json(vars(found))
        return
    out().print(
        f"[bold green]✓[/] {folder} loads in {found.now:.2g} s, before in {found.before:.2g} "
        f"[dim]({found.bytes / 1e6:,.0f} MB more on disk)[/]",
        soft_wrap=True,
    )
