"""`planform schema`: the JSON schema of spec files, for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EPILOG = "Example: planform schema --out planform.schema.json"


def add(app: typer.Typer) -> None:
    app.command(epilog=EPILOG)(schema)


def schema(
    file: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write it there instead.")] = None,
) -> None:
    """Print the JSON schema of spec files: completion and checks in an editor."""
    import json

    from planform.spec import json_schema

    from ..errors import UserError

    text = json.dumps(json_schema(), indent=2) + "\n"
    if file is None:
        print(text, end="")
        return
    try:
        beside = file.with_name(file.name + ".new")
        beside.write_text(text)
        beside.replace(file)
    except OSError as error:
        raise UserError(
            f"can't write {file}: {error.strerror}", help="choose a file in a folder that exists"
        ) from error
