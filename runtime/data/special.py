"""What lies beside a tokenizer: how its special tokens are written, and its chat template."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .files import read_file, read_mapping, write_file

SETTINGS = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
CHAT_TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class Settings:
    """files    the contents of those files that there are, by name
    specials    how a special token is written, by the name of its role: `bos_token`, `eos_token`, `pad_token`
    adds_bos    whether texts begin with bos, if there is one
    """

    files: dict[str, bytes] = field(default_factory=dict)
    specials: dict[str, str] = field(default_factory=dict)
    adds_bos: bool = True

    def save(self, folder: Path) -> None:
        for name, content in self.files.items():
            write_file(folder / name, content)


def read_settings(folder: Path) -> Settings:
    """The settings in a tokenizer's folder; empty ones where there are none. Raises: UserError for a damaged file."""
    files = {n: read_file(folder / n) for n in (SETTINGS, SPECIAL_TOKENS, CHAT_TEMPLATE) if (folder / n).is_file()}
    told: dict[str, Any] = {}
    for name in (SPECIAL_TOKENS, SETTINGS):
        if name in files:
            told |= read_mapping(folder / name)
    specials = {}
    for role, token in told.items():
        text = token.get("content") if isinstance(token, dict) else token
        if role.endswith("_token") and isinstance(text, str):
            specials[role] = text
    return Settings(files, specials, told.get("add_bos_token") is not False)


def chat_template(folder: Path) -> str | None:
    """The text of the chat template in a tokenizer's folder: its own file, or in the settings. Of several the one
    called `default`. Raises: UserError for a damaged file."""
    if (folder / CHAT_TEMPLATE).is_file():
        return read_file(folder / CHAT_TEMPLATE).decode(errors="replace")
    told = read_mapping(folder / SETTINGS).get("chat_template") if (folder / SETTINGS).is_file() else None
    if isinstance(told, list):
        named = {t.get("name"): t.get("template") for t in told if isinstance(t, dict)}
        told = named.get("default")
    return told if isinstance(told, str) else None
