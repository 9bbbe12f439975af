"""Diagnostics are objects first; `render` makes the text for people, `as_json` the one for tools."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from .source import Span

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Note:
    """A further fact, with the place it comes from if it has one."""

    text: str
    span: Span | None = None


@dataclass(frozen=True)
class Diagnostic:
    """One finding.

    code     stable: PF01xx YAML, PF02xx document and names, PF03xx kinds, dims and shapes, PF04xx sharding,
             PF05xx training, PF06xx weights and files
    message  one sentence without a full stop
    label    what stands beside the caret
    notes    facts: "in lm > layer > attend", "kv_heads = 4, set at line 9"
    help     what to write instead
    """

    code: str
    message: str
    span: Span | None
    label: str = ""
    notes: tuple[Note, ...] = ()
    help: str | None = None
    expected: tuple[str, ...] = ()
    severity: Severity = "error"


class SpecError(Exception):
    """One or more errors in a spec; never shown as a traceback."""

    def __init__(self, diagnostics: Iterable[Diagnostic] | Diagnostic) -> None:
        self.diagnostics = (diagnostics,) if isinstance(diagnostics, Diagnostic) else tuple(diagnostics)
        super().__init__("\n".join(render(d) for d in self.diagnostics))


@dataclass
class Diagnostics:
    """Collects findings so that several are reported in one run."""

    found: list[Diagnostic] = field(default_factory=list)
    limit: int = 50

    def add(self, diagnostic: Diagnostic) -> None:
        same = any(d.code == diagnostic.code and d.span == diagnostic.span for d in self.found)
        if not same and len(self.found) < self.limit:
            self.found.append(diagnostic)

    def extend(self, diagnostics: Iterable[Diagnostic]) -> None:
        for d in diagnostics:
            self.add(d)

    @property
    def full(self) -> bool:
        """Whether more would be dropped, so that looking for more is wasted."""
        return len(self.found) >= self.limit

    @property
    def errors(self) -> list[Diagnostic]:
        return [d for d in self.found if d.severity == "error"]

    def raise_errors(self) -> None:
        """Raises: SpecError with everything found, in the order of the files, if any of it is an error."""
        if self.errors:
            raise SpecError(in_order(self.found))


def in_order(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    """By file (as first met) and place; those without a place come last."""
    found = list(diagnostics)
    files = list(dict.fromkeys(d.span.source.name for d in found if d.span))

    def key(d: Diagnostic) -> tuple[int, int]:
        return (files.index(d.span.source.name), d.span.start) if d.span else (len(files), 0)

    return sorted(found, key=key)


def suggest(word: str, choices: Iterable[str]) -> str | None:
    """The nearest of the choices, or None when none is near."""
    pool = list(islice(dict.fromkeys(choices), 1000))  # the search is slow, and no one has more
    near = difflib.get_close_matches(word, pool, n=1, cutoff=0.6)
    if not near:
        near = [c for c in pool if c.lower() == word.lower()]
    return near[0] if near else None


def did_you_mean(word: str, choices: Iterable[str]) -> str | None:
    near = suggest(word, choices)
    return f"did you mean `{near}`?" if near else None


def render(d: Diagnostic) -> str:
    """Plain text in the manner of rustc: code, message, place, line, caret, notes, help."""
    out = [f"{d.severity}[{d.code}]: {d.message}"]
    if d.span is None:
        margin = ""
    else:
        line, column = d.span.line, d.span.column
        text = d.span.source.line(line)
        margin = " " * len(str(line))
        width = max(1, min(d.span.end, d.span.start + len(text) - column + 1) - d.span.start)
        text, column = _window(text, column)
        width = min(width, len(text) - column + 2)
        out.append(f"{margin}--> {d.span}")
        out.append(f"{margin} |")
        out.append(f"{line} | {text}".rstrip())
        pad = "".join("\t" if c == "\t" else " " for c in text[: column - 1])
        out.append(f"{margin} | {pad}{'^' * width} {d.label}".rstrip())
    for note in d.notes:
        place = f" ({note.span})" if note.span else ""
        out.append(f"{margin} = {note.text}{place}")
    if d.help:
        out.append(f"{margin} = help: {d.help}")
    return "\n".join(_printable(line) for line in out)


_WIDEST = 160


def _window(text: str, column: int) -> tuple[str, int]:
    """A long line cut down to what surrounds the column (from one), and the column in it."""
    if len(text) <= _WIDEST:
        return text, column
    start = max(0, min(column - 1 - _WIDEST // 2, len(text) - _WIDEST))
    end = start + _WIDEST
    before, after = "…" if start else "", "…" if end < len(text) else ""
    return before + text[start:end] + after, column - start + len(before)


def _printable(text: str) -> str:
    """Control characters (a terminal would obey them) and lone surrogates (they can't be written) as dots."""
    return "".join(c if c.isprintable() or c in "\t " else "·" for c in text)


def as_json(d: Diagnostic) -> dict[str, Any]:
    """The same for tools, positions counted from one."""

    def place(span: Span) -> dict[str, Any]:
        last = span.source.position(max(span.start, span.end - 1))
        return {
            "file": span.source.name,
            "line": span.line,
            "column": span.column,
            "end_line": last[0],
            "end_column": last[1] + 1,
        }

    return {
        "severity": d.severity,
        "code": d.code,
        "message": d.message,
        "label": d.label,
        "place": place(d.span) if d.span else None,
        "notes": [{"text": n.text, "place": place(n.span) if n.span else None} for n in d.notes],
        "help": d.help,
        "expected": list(d.expected),
    }
