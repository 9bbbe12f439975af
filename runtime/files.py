"""Files that are there as a whole or not at all: a kill leaves no half of one under its name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .errors import UserError


@contextmanager
def whole(file: Path, parents: bool = False) -> Iterator[BinaryIO]:
    """What is written here has its name when the block ends well; with `parents` its folder is made too.

    Raises: UserError where it can't be written.
    """
    beside = file.with_name(f".{file.name}.part")
    try:
        if parents:
            file.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        beside.replace(file)
    except OSError as error:
        raise UserError(f"can't write {file}: {error.strerror or error}") from error


def write_json(file: Path, told: Mapping[str, Any]) -> None:
    """Raises: UserError."""
    with whole(file) as f:
        f.write((json.dumps(told, indent=1) + "\n").encode())
