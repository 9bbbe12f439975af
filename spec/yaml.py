"""YAML 1.2 into a tree whose every node knows its place, with nothing in it that could surprise.

ruamel.yaml reads the events; the tree is composed here, so that depth, aliases, tags and duplicate keys are
ours to bound or refuse, and plain scalars are resolved by the 1.2 core schema alone (`yes`, `on` and `no` are
text).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError

from .diagnostics import Diagnostic, Diagnostics, SpecError
from .source import Source, Span
from .yaml_traps import explain, flow_cut

MAX_CHARACTERS = 100_000
"""Far above any spec written by hand, and read within two seconds or so."""

MAX_DEPTH = 60

Style = Literal["plain", "single", "double", "literal", "folded"]


@dataclass(frozen=True)
class Scalar:
    """`text` is YAML's value; `content` the raw slice of the file that an expression is parsed from."""

    text: str
    style: Style
    span: Span
    content: Span

    @property
    def value(self) -> str | int | float | bool | None:
        """The value by the core schema; quoted and block scalars are text."""
        return resolve(self.text) if self.style == "plain" else self.text


@dataclass(frozen=True)
class Sequence:
    items: tuple[Node, ...]
    span: Span


@dataclass(frozen=True)
class Entry:
    key: Scalar
    value: Node


@dataclass(frozen=True)
class Mapping:
    """Entries by the text of their keys, in the order written."""

    entries: dict[str, Entry]
    span: Span

    def get(self, key: str) -> Node | None:
        entry = self.entries.get(key)
        return entry.value if entry else None


Node = Scalar | Sequence | Mapping

_STYLES: dict[str | None, Style] = {
    None: "plain",
    "": "plain",
    "'": "single",
    '"': "double",
    "|": "literal",
    ">": "folded",
}


def parse(source: Source) -> Mapping:
    """The document's top mapping (empty for an empty file).

    Raises: SpecError (PF010x); a syntax error ends the reading, the rest is collected.
    """
    text = source.text
    if len(text) > MAX_CHARACTERS:
        raise SpecError(
            Diagnostic(
                "PF0108",
                f"the file holds {len(text):,} characters; a spec has at most {MAX_CHARACTERS:,}",
                Span(source, 0, 0),
            )
        )
    reading = _Reading(source)
    try:
        node = reading.document()
    except ReaderError as error:
        at = min(error.position, max(0, len(text) - 1))
        raise SpecError(
            Diagnostic(
                "PF0108",
                f"character U+{ord(text[at]):04X} can't stand in a YAML file",
                Span(source, at, at + 1),
                help="remove it; the file must be plain UTF-8 text",
            )
        ) from None
    except MarkedYAMLError as error:
        # What was found before (a value cut at a comma, say) is often the cause of what stopped the reading.
        cause = explain(source, error)
        if not any(d.span and cause.span and d.span.start == cause.span.start for d in reading.found.found):
            reading.found.add(cause)
        raise SpecError(reading.found.found) from None
    except YAMLError as error:
        raise SpecError(Diagnostic("PF0101", f"not readable as YAML: {error}", Span(source, 0, 0))) from None
    reading.found.raise_errors()
    if node is None:
        return Mapping({}, Span(source, 0, 0))
    if not isinstance(node, Mapping):
        raise SpecError(
            Diagnostic(
                "PF0101",
                "a spec is a mapping of sections",
                Span(source, node.span.start, min(node.span.end, node.span.start + 1)),
                "this is not `key: value`",
                help="start with `planform: 1` and `model: NAME`",
            )
        )
    return node


def parse_value(source: Source, start: int) -> Node:
    """One YAML value that begins at `start` of an override's text. Raises: SpecError (PF010x)."""
    blank = Source(source.name, " " * start + source.text[start:])
    try:
        reading = _Reading(blank)
        node = reading.document()
        reading.found.raise_errors()
    except (YAMLError, SpecError):
        node = None
    if node is None:
        raise SpecError(
            Diagnostic(
                "PF0101",
                "this value is not readable as YAML",
                Span(source, start, len(source.text)),
                help="lists are written [a, b], mappings {key: value}",
            )
        )
    return _moved(node, source)


def _moved(node: Node, source: Source) -> Node:
    def moved(span: Span) -> Span:
        return Span(source, span.start, span.end)

    if isinstance(node, Scalar):
        return Scalar(node.text, node.style, moved(node.span), moved(node.content))
    if isinstance(node, Sequence):
        return Sequence(tuple(_moved(item, source) for item in node.items), moved(node.span))
    entries = {}
    for name, entry in node.entries.items():
        key = Scalar(entry.key.text, entry.key.style, moved(entry.key.span), moved(entry.key.content))
        entries[name] = Entry(key, _moved(entry.value, source))
    return Mapping(entries, moved(node.span))


class _Reading:
    """Composes one document from ruamel's events."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.found = Diagnostics()
        self.events: Iterator[Any] = YAML(typ="safe", pure=True).parse(source.text)
        self.flows = 0

    def document(self) -> Node | None:
        next(self.events)  # the stream's start
        event = next(self.events)
        if type(event).__name__ == "StreamEndEvent":
            return None
        if event.version or event.tags:
            span = Span(self.source, event.start_mark.index, event.start_mark.index + 1)
            self._refuse("directives (`%...`)", span, "remove the line; specs are YAML 1.2")
        node = self.node(next(self.events), 0)
        next(self.events)  # the document's end
        event = next(self.events)
        if type(event).__name__ == "DocumentStartEvent":
            at = event.start_mark.index
            raise SpecError(
                [
                    *self.found.found,
                    Diagnostic(
                        "PF0105",
                        "a file holds one spec",
                        Span(self.source, at, at + 3),
                        "a second document starts here",
                        help="put it into a file of its own",
                    ),
                ]
            )
        return node

    def node(self, event: Any, depth: int) -> Node:
        span = Span(self.source, event.start_mark.index, event.end_mark.index)
        if depth > MAX_DEPTH:
            raise SpecError(Diagnostic("PF0108", f"the file is nested more than {MAX_DEPTH} levels deep", span))
        kind = type(event).__name__
        if kind == "AliasEvent":
            self._refuse("aliases (`*name`)", span, _INSTEAD_OF_ANCHORS)
            return Scalar("", "plain", span, span)
        if event.anchor is not None:
            self._refuse("anchors (`&name`)", span, _INSTEAD_OF_ANCHORS)
        if event.tag is not None and not (kind == "ScalarEvent" and event.tag == "!" and event.style):
            self._refuse("tags (`!name`)", span, "remove the tag; text that starts with `!` stands in a block scalar")
        if kind == "ScalarEvent":
            return self.scalar(event, span)
        self.flows += bool(event.flow_style)
        try:
            if kind == "SequenceStartEvent":
                return self.sequence(span, depth)
            return self.mapping(span, depth)
        finally:
            self.flows -= bool(event.flow_style)

    def scalar(self, event: Any, span: Span) -> Scalar:
        style = _STYLES[event.style]
        node = Scalar(event.value, style, span, _content(span, style))
        if style == "plain" and self.flows:
            fault = flow_cut(span)
            if fault is not None:
                self.found.add(fault)
        return node

    def sequence(self, start: Span, depth: int) -> Sequence:
        items = []
        while type(event := next(self.events)).__name__ != "SequenceEndEvent":
            items.append(self.node(event, depth + 1))
        return Sequence(tuple(items), self._to(start, event, items[-1].span if items else start))

    def mapping(self, start: Span, depth: int) -> Mapping:
        entries: dict[str, Entry] = {}
        last = start
        while type(event := next(self.events)).__name__ != "MappingEndEvent":
            key = self.node(event, depth + 1)
            value = self.node(next(self.events), depth + 1)
            last = value.span
            if not isinstance(key, Scalar) or not key.text:
                span = Span(self.source, key.span.start, min(key.span.start + 1, key.span.end))
                self.found.add(Diagnostic("PF0105", "a key must be a word", span))
            elif key.text == "<<" and key.style == "plain":
                self._refuse("merge keys (`<<`)", key.span, "`extends: FILE` takes over another spec")
            elif key.text in entries:
                self.found.add(
                    Diagnostic(
                        "PF0104",
                        f"`{key.text}` is given twice",
                        key.span,
                        f"first given at line {entries[key.text].key.span.line}",
                        help="remove one of the two",
                    )
                )
            else:
                entries[key.text] = Entry(key, value)
        return Mapping(entries, self._to(start, event, last))

    def _to(self, start: Span, event: Any, last: Span) -> Span:
        """From the first character to the last; a block collection has no end mark of its own."""
        end = event.end_mark.index if event.end_mark.index > event.start_mark.index else last.end
        return Span(self.source, start.start, max(end, start.start))

    def _refuse(self, what: str, span: Span, help: str) -> None:
        first = self.source.line(span.line)[span.column - 1 :].split(" ")[0]
        short = Span(self.source, span.start, min(span.end, span.start + max(1, len(first))))
        self.found.add(Diagnostic("PF0105", f"specs don't use YAML's {what}", short, help=help))


_INSTEAD_OF_ANCHORS = (
    "name what is shared under `dims` or `blocks`; text that starts with `&` or `*` stands in a block scalar"
)


def _content(span: Span, style: Style) -> Span:
    """The raw characters of a scalar without quotes or the `|` line."""
    text = span.source.text
    if style in ("single", "double"):
        return Span(span.source, span.start + 1, span.end - 1)
    if style == "plain":
        return span
    newline = text.find("\n", span.start, span.end)
    start = span.end if newline < 0 else newline + 1
    end = start + len(text[start : span.end].rstrip())
    return Span(span.source, min(start, end), end)


_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, bool | float | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **{sign + word: math.inf for word in (".inf", ".Inf", ".INF") for sign in ("", "+")},
    **{"-" + word: -math.inf for word in (".inf", ".Inf", ".INF")},
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}


def resolve(text: str) -> str | int | float | bool | None:
    """A plain scalar's value by the YAML 1.2 core schema."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text) and len(text) < 40:  # longer ones overflow to inf below and are refused by the schema
        return int(text)
    if _OCTAL.fullmatch(text) and len(text) < 40:
        return int(text[2:], 8)
    if _HEX.fullmatch(text) and len(text) < 40:
        return int(text[2:], 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
