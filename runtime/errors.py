"""What can go wrong while running, said in one sentence."""

from __future__ import annotations


class UserError(Exception):
    """A fault that the user can mend: a missing file, a bad checkpoint, a full disk.

    message  one clear sentence without a full stop
    help     what to do about it, or None

    The command line prints both and exits with 2; a traceback is never shown for it. Faults that have a place
    in a spec are `planform.spec.diagnostics.SpecError` instead.
    """

    exit_code = 2

    def __init__(self, message: str, help: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.help = help
