"""The command line, `planform COMMAND`: one file per command.

Importing this must stay fast: a command imports what it works with when it runs.
"""

from __future__ import annotations

from .app import app


def main() -> None:
    """The console script."""
    app()


__all__ = ["app", "main"]
