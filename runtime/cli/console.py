"""What the command line writes to: results go to standard output, all else to standard error."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from planform.spec import Diagnostic

_STYLES = (
    (re.compile(r"^error\[[^\]]*\]:"), "bold red"),
    (re.compile(r"^warning\[[^\]]*\]:"), "bold yellow"),
    (re.compile(r"^ *-->.*"), "blue"),
    (re.compile(r"^ *\d* \|"), "blue"),
    (re.compile(r"^ +\| +(\^+.*)"), "bold red"),
    (re.compile(r"^ *= help: .*"), "cyan"),
    (re.compile(r"^ *= (?!help:).*"), "dim"),
)


def out() -> Console:
    """For results. Plain and as wide as need be where it isn't a terminal."""
    return _console(sys.stdout)


def err() -> Console:
    """For everything that isn't the result: diagnostics, progress, errors."""
    return _console(sys.stderr)


def _console(file: Any) -> Console:
    from rich.console import Console  # here, since a command that prints JSON needs none of it

    width = None if file.isatty() else 160
    return Console(file=file, highlight=False, soft_wrap=False, width=width)


def styled(text: str) -> Text:
    """A rendered diagnostic in colour; the characters stay the same."""
    from rich.text import Text

    found = Text(text)
    start = 0
    for line in text.split("\n"):
        for pattern, style in _STYLES:
            if m := pattern.match(line):
                group = 1 if pattern.groups else 0
                found.stylize(style, start + m.start(group), start + m.end(group))
        start += len(line) + 1
    return found


def print_diagnostics(diagnostics: Iterable[Diagnostic], console: Console | None = None) -> None:
    """Rendered, an empty line between two."""
    from planform.spec import render

    console = console or err()
    for i, d in enumerate(diagnostics):
        if i:
            console.print()
        console.print(styled(render(d)), soft_wrap=True)


def print_error(message: str, help: str | None = None) -> None:
    """One sentence, and what to do about it."""
    from rich.text import Text

    console = err()
    console.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    if help:
        console.print(Text.assemble(("  = help: ", "cyan"), (help, "cyan")), soft_wrap=True)


def print_json(value: Any) -> None:
    """One document on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def count(n: float) -> str:
    """2,024,517,888 as `2.02 B`; below a thousand as it is."""
    return _scaled(n, 1000, ("", " K", " M", " B", " T"))


def size(n: float) -> str:
    """A number of bytes: `104 KiB`."""
    return _scaled(n, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def _scaled(n: float, step: int, units: Sequence[str]) -> str:
    i = 0
    while n >= step * 0.9995 and i < len(units) - 1:
        n /= step
        i += 1
    return f"{n:.0f}{units[i]}" if i == 0 else f"{n:.3g}{units[i]}"
