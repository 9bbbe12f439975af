"""What goes with a model's weights wherever they go: its tokenizer, its chat template, how generation ends."""

from __future__ import annotations

import json
from pathlib import Path

from .data.files import read_file
from .run import read_run

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
    config = read_run(run).get("imported", {}).get("config", {})
    ids = {key: config[key] for key in _IDS if config.get(key) is not None}
    if found and ids and GENERATION not in found:
        found[GENERATION] = (json.dumps(ids, indent=2) + "\n").encode()
    return found
