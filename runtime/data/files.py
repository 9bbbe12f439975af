"""Small files read whole and written beside first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import UserError


def read_file(file: Path) -> bytes:
    """Raises: UserError."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"can't read {file}: {error.strerror}") from error


def read_mapping(file: Path) -> dict[str, Any]:
    """The mapping in a JSON file. Raises: UserError."""
    try:
        value = json.loads(read_file(file))
    except ValueError as error:
        raise UserError(f"{file} isn't JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} isn't a JSON mapping")
    return value


def write_file(file: Path, content: bytes) -> None:
    beside = file.with_name(file.name + ".part")
    beside.write_bytes(content)
    beside.replace(file)
