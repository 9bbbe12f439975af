"""What goes with a model's weights wherever they go: its tokenizer, its chat template, how generation ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .data.files import read_file, read_mapping
from .data.tokenizers import load_tokenizer

COMPANIONS = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
    "chat_template.jinja",
)  # fmt: skip
FOLDER = "tokenizer"
"""Where a run's folder keeps them."""

GENERATION = "generation_config.json"
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def companions(run: str | Path) -> dict[str, bytes]:
    """The companions of a run by file name; none where the run has no tokenizer.

    A checkpoint that says only in its config.json by which ids a text ends gets a generation_config.json of them.
    Raises: UserError.
    """
    folder = Path(run) / FOLDER
    found = {name: read_file(folder / name) for name in COMPANIONS if (folder / name).is_file()}
    config = _config(run)
    ids = {key: config[key] for key in _IDS if config.get(key) is not None}
    if found and ids and GENERATION not in found:
        found[GENERATION] = (json.dumps(ids, indent=2) + "\n").encode()
    return found


def generation_ids(run: str | Path) -> dict[str, Any]:
    """Which ids begin and end a text and pad a row, as checkpoints name them (`eos_token_id`: one or a list): by the
    run's generation_config.json, the configuration it came with, or its tokenizer. Raises: UserError."""
    folder = Path(run) / FOLDER
    file = folder / GENERATION
    told = {**_config(run), **(read_mapping(file) if file.is_file() else {})}
    ids = {key: told[key] for key in _IDS if told.get(key) is not None}
    if not ids and folder.is_dir():
        tokenizer = load_tokenizer(folder)
        ids = dict(zip(_IDS, (tokenizer.bos, tokenizer.eos, tokenizer.pad)))
    return {key: value for key, value in ids.items() if value is not None}


def _config(run: str | Path) -> dict[str, Any]:
    """The configuration that a run's weights came with, empty where they were trained here."""
    from .run import read_run  # here, since an exported folder has no use for what reads checkpoints

    found: dict[str, Any] = read_run(run).get("imported", {}).get("config", {})
    return found
