"""The blocks that ship with the language."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources

from .build import Builder
from .diagnostics import Diagnostics
from .model import BlockDef
from .source import Source
from .yaml import parse


@lru_cache(maxsize=1)
def prelude() -> dict[str, BlockDef]:
    """The prelude's blocks by name.

    Names in their bodies mean their own arguments, blocks of these names (a spec's own included) and ops; a
    spec's other names don't reach them.
    """
    text = (resources.files(__package__) / "prelude.yaml").read_text(encoding="utf-8")
    found = Diagnostics()
    blocks = Builder(found).blocks(parse(Source("spec/prelude.yaml", text)).get("blocks"), prelude=True)
    found.raise_errors()
    return blocks
