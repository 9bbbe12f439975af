"""Random damage to specs: what an editor, a merge or a tired hand could leave behind."""

from __future__ import annotations

import random
import re
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from planform.spec import shipped

from .systems import SYSTEMS

_TOKENS = (
    ">>", "+", "^", "(", ")", "[", "]", "{", "}", ",", "=", ":", ": ", " #", "#", '"', "'", "|", ">", "- ", "*", "&",
    "!", "@", "`", "%", "\t", "\n", "\n\n", " ", "    ", "\r", "\x00", "\x1b", "\u2028", "\ufeff", "é", "\U0001f600",
    "\ud800", "---", "...", "<<", "null", "~", "true", "none", "in", "id", "1e999", "-1", "0", "2 ^ 60", "0x10",
    "99999999999999999999", ".", "//", "/ 0", "a@b", "*x", "&x", "!!set", "? ", "layer", "norm", "lm", "vocab", "d",
)  # fmt: skip


def corpus() -> list[str]:
    """The specs that damage starts from: all that ship, and the example systems."""
    texts = [file.read_text(encoding="utf-8") for file in shipped().values()]
    return [*texts, *SYSTEMS.values()]


def mutate(text: str, other: str, rng: random.Random) -> str:
    """The text with one to four random changes; `other` lends lines."""
    for _ in range(rng.randint(1, 4)):
        text = _change(text, other, rng)
    return text


def _change(text: str, other: str, rng: random.Random) -> str:
    at = rng.randrange(len(text) + 1)
    end = min(len(text), at + rng.choice([1, 1, 2, 5, 20, 200]))
    lines = text.split("\n")
    row = rng.randrange(len(lines))
    kind = rng.randrange(12)
    if kind == 0:
        return text[:at] + text[end:]
    if kind == 1:
        return text[:at] + rng.choice(_TOKENS) + text[at:]
    if kind == 2:
        return text[:at] + rng.choice(_TOKENS) + text[end:]
    if kind == 3:
        return text[:at] + text[at:end] * rng.choice([2, 3, 50]) + text[end:]
    if kind == 4:
        del lines[row]
    elif kind == 5:
        lines.insert(rng.randrange(len(lines) + 1), lines[row])
    elif kind == 6:
        second = rng.randrange(len(lines))
        lines[row], lines[second] = lines[second], lines[row]
    elif kind == 7:
        lines[row] = " " * rng.randint(0, 8) + lines[row].lstrip()
    elif kind == 8:
        lines.insert(row, rng.choice(other.split("\n")))
    elif kind == 9:
        words = re.findall(r"\w+", text) or ["x"]
        old, new = rng.choice(words), rng.choice(words)
        return re.sub(rf"\b{old}\b", new, text, count=rng.randint(0, 2))
    elif kind == 10:
        return re.sub(r"\d+", lambda m: rng.choice([m.group(), "0", "-3", "1.5", "9" * 30]), text)
    else:
        return text[:at]
    return "\n".join(lines)


@contextmanager
def limits(seconds: int, megabytes: int) -> Iterator[None]:
    """Fails when the work inside takes longer, or when the process grows by more."""

    def late(_signal: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"took more than {seconds} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < megabytes, f"grew by {grown:.0f} MB"
