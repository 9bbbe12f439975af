"""Texts that end what is written, wherever tokens are cut."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import UserError


class StopStrings:
    """Passes text on up to the first stop string, which is never passed on itself.

    Text is held back as long as it could be the beginning of one. Of several that begin in the text, the one that
    is complete first ends it; of those complete at the same character, the one that begins first.

    Raises: UserError for an empty stop string, which would end every text before it begins.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise UserError("a stop string is empty", help="give the text at which writing is to end")
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None
        """The stop string that ended the text."""

    def write(self, text: str) -> str:
        """What may be said now that this came. Nothing once a stop string was found."""
        if self.found is not None:
            return ""
        self._held += text
        hits = [(at + len(s), at, s) for s in self._stops if (at := self._held.find(s)) >= 0]
        if hits:
            _, at, self.found = min(hits)
            said, self._held = self._held[:at], ""
            return said
        keep = max((self._beginning(s) for s in self._stops), default=0)
        said = self._held[: len(self._held) - keep]
        self._held = self._held[len(said) :]
        return said

    def flush(self) -> str:
        """What was held back, now that nothing more comes."""
        said, self._held = self._held, ""
        return said

    def _beginning(self, stop: str) -> int:
        """How many characters at the end of what is held begin this stop string."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
