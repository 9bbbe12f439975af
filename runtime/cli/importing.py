"""`planform import`: somebody else's checkpoint as a folder that every command takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, Set

EPILOG = "Example: planform import checkpoints/gemma-2-2b --spec gemma2 --out runs/gemma-2-2b"


def add(app: typer.Typer) -> None:
    app.command("import", epilog=EPILOG)(import_)


def import_(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="config.json and safetensors files, or flax parameters by Orbax.")
    ],
    spec: Annotated[str, typer.Option("--spec", metavar="SPEC", help="The spec with a `weights` map for them.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where to; it must not exist yet.")],
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Import a checkpoint: sizes from its config.json or its shapes, tensors one by one."""
    from ..exchange import import_folder
    from ..run import spec_of_run
    from .console import out as console
    from .console import print_json
    from .options import label

    import_folder(folder, spec, out, tuple(overrides or ()))
    found = spec_of_run(out)
    if as_json:
        print_json({"folder": str(out), "spec": label(found), "dims": {n: d.span.text for n, d in found.dims.items()}})
        return
    console().print(f"[bold green]✓[/] {out}: {label(found)}, with the weights of {folder}")
