"""Telling exported folders from others, without loading anything that could run them."""

from __future__ import annotations

import json
from pathlib import Path

CONTRACT = "contract.json"


def is_artefact(folder: str | Path) -> bool:
    """Whether a folder is one that `export` made."""
    try:
        told = json.loads((Path(folder) / CONTRACT).read_text())
        return isinstance(told, dict) and str(told.get("producer", "")).startswith("planform")
    except (OSError, ValueError):
        return False
