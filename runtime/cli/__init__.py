"""The command line, `planform COMMAND`: one file per command.

Importing this must stay fast: a command imports what it works with when it runs.
"""

from __future__ import annotations

import sys

from .commands import app

HEAVY = ("train", "eval", "demo")
"""Commands that compute for long: they start themselves again in the environment that suits a CPU best."""


def main() -> None:
    """The console script."""
    if sys.argv[1:2] and sys.argv[1] in HEAVY and not {"-h", "--help"}.intersection(sys.argv):
        from ..environment import reexec_with

        reexec_with(1)
    app()


__all__ = ["app", "main"]
