"""The places where YAML and expressions meet badly, each told apart and with its own advice."""

from __future__ import annotations

import re
from dataclasses import replace

from ruamel.yaml.error import MarkedYAMLError

from .diagnostics import Diagnostic
from .source import Source, Span

BLOCK = "put the expression into a block scalar: `|` after the key, the text indented below"

_STARTERS = {
    "[": "YAML takes `[` for the start of a list",
    "*": "YAML takes `*` for an alias",
    '"': 'YAML takes `"` for the start of quoted text, which must then be the whole value',
    "'": "YAML takes `'` for the start of quoted text, which must then be the whole value",
    "&": "YAML takes `&` for an anchor",
    "!": "YAML takes `!` for a tag",
    "@": "YAML reserves `@`",
    "`": "YAML reserves the backquote",
    "%": "YAML takes `%` for a directive",
    "-": "YAML takes `- ` for an item of a list",
    "|": "YAML takes `|` for the start of a block scalar, whose text stands on the lines below",
    ">": "YAML takes `>` for the start of a folded scalar, whose text stands on the lines below",
    "?": "YAML takes `? ` for a complex key",
    "{": "YAML takes `{` for the start of a mapping",
}
_ENTRY = re.compile(r"""\s*(?:- )?(?P<key>[A-Za-z_][\w.@-]*(?:\([^)]*\))?)\s*:\s+(?P<value>\S.*)$""")


def flow_cut(span: Span) -> Diagnostic | None:
    """A plain scalar inside `{...}` or `[...]` that YAML cut at a comma or bracket of the expression."""
    text = span.text
    if text.count("(") == text.count(")"):
        return None
    return Diagnostic(
        "PF0106",
        "unbalanced brackets: YAML cut this value at a comma or bracket",
        span,
        "the value that was read",
        help="inside {...} and [...] values can't hold commas or brackets; use one `key: value` a line",
    )


def explain(source: Source, error: MarkedYAMLError) -> Diagnostic:
    """Turns ruamel's error into a diagnostic at the line to change."""
    found = _explain(source, error)
    end = len(source.text)  # the place may be the end of the file, with no character to point at
    if found.span is None or found.span.end <= end:
        return found
    return replace(found, span=Span(source, min(found.span.start, end), end))


def _explain(source: Source, error: MarkedYAMLError) -> Diagnostic:
    mark = error.problem_mark or error.context_mark
    text = source.text
    at = min(mark.index, len(text)) if mark else 0
    problem = str(error.problem or error.context or "not readable as YAML")
    here = Span(source, at, min(len(text), at + 1))
    if "'\\t'" in problem:
        return Diagnostic(
            "PF0103",
            "a tab can't stand here",
            here,
            "YAML is indented with spaces",
            help="replace tabs by spaces",
        )
    for line in _suspects(source, at):
        found = _trap(source, line, at, problem)
        if found is not None:
            return found
    if "flow" in str(error.context) and error.context_mark is not None:
        return _in_flow(source, error, here)
    if "quoted scalar" in str(error.context):
        start = error.context_mark.index
        return Diagnostic(
            "PF0102",
            "this quoted text is not readable" if "escape" in problem else "this quote is never closed",
            here if "escape" in problem else Span(source, start, start + 1),
            problem if "escape" in problem else "",
            help=BLOCK,
        )
    if "block scalar" in str(error.context):
        return Diagnostic("PF0102", "`|` and `>` end their line", here, "only a comment may follow", help=BLOCK)
    if problem.startswith("mapping values") or "<block end>" in problem or "sequence entries" in problem:
        return Diagnostic(
            "PF0102",
            "the indentation doesn't fit the lines above",
            here,
            help="keys of one mapping start in the same column; what belongs to a key is indented more",
        )
    if "could not find expected ':'" in problem:
        start = error.context_mark.index if error.context_mark else at
        line = source.position(start)[0]
        word = source.line(line)[source.position(start)[1] - 1 :].rstrip()
        return Diagnostic(
            "PF0102",
            "a key must be followed by `:`",
            Span(source, start, start + max(1, len(word))),
            "this line is not `key: value`",
            help="if it continues a block scalar above, indent it like the lines of that scalar",
        )
    return Diagnostic("PF0101", f"not readable as YAML: {problem}", here)


def _suspects(source: Source, at: int) -> list[int]:
    """The line of the problem and the last line above it that holds anything."""
    line = source.position(at)[0]
    lines = [line]
    for above in range(line - 1, max(0, line - 4), -1):
        if source.line(above).strip():
            lines.append(above)
            break
    return lines


def _trap(source: Source, line: int, at: int, problem: str) -> Diagnostic | None:
    """Is this line a `key: value` that YAML reads differently than it looks?"""
    text = source.line(line)
    match = _ENTRY.match(text)
    if match is None:
        return None
    value = match["value"].rstrip()
    start = at - source.position(at)[1] + 1 if source.position(at)[0] == line else _start_of(source, line)
    place = start + match.start("value")
    first = Span(source, place, place + 1)
    same_line = source.position(at)[0] == line
    comment = value.find(" #")
    if not same_line:
        if comment >= 0 and _open(value[:comment]) and value[0] not in "|>[{\"'":
            return _comment(source, place + comment + 1, len(value) - comment - 1)
        return None
    if at < place:
        return None
    if value[0] in _STARTERS and value[0] not in "{":
        if value[0] in "|>" and (comment < 0 or value[1:comment].strip(" +-0123456789")):
            pass
        elif value[0] in "\"'" and value.count(value[0]) < 2 or value[0] == "[" and _open(value):
            return None
        return Diagnostic("PF0109", f"a value can't begin with `{value[0]}`", first, _STARTERS[value[0]], help=BLOCK)
    if problem.startswith("mapping values"):
        colon = re.search(r":(\s|$)", value)
        if colon:
            where = place + colon.start()
            return Diagnostic(
                "PF0107",
                "`: ` can't stand inside a plain value",
                Span(source, where, where + 1),
                "YAML takes this for a key",
                help=BLOCK + "; arguments are written `key=value`",
            )
    return None


def comment_cut(span: Span) -> Diagnostic | None:
    """A plain scalar whose expression was cut off by ` #` (its brackets are open and a comment follows)."""
    source = span.source
    line = source.line(source.position(span.end)[0])
    column = source.position(span.end)[1] - 1
    rest = line[column:]
    if not rest.lstrip().startswith("#") or not _open(span.text):
        return None
    at = span.end + len(rest) - len(rest.lstrip())
    return _comment(source, at, len(rest.strip()))


def _comment(source: Source, at: int, length: int) -> Diagnostic:
    return Diagnostic(
        "PF0107",
        "a comment cuts this expression off",
        Span(source, at, at + length),
        "` #` ends a plain value",
        help=BLOCK + "; comments may then stand anywhere in it",
    )


def _in_flow(source: Source, error: MarkedYAMLError, here: Span) -> Diagnostic:
    opener = error.context_mark.index
    symbol = source.text[opener : opener + 1]
    problem = str(error.problem)
    if here.start < len(source.text) and source.text[here.start] in "[{(":
        return Diagnostic(
            "PF0106",
            f"`{source.text[here.start]}` can't follow a value inside `{symbol}...`",
            here,
            "YAML ends the value here",
            help=f"write the mapping in block style (one `key: value` a line), or {BLOCK}",
        )
    closer = {"{": "}", "[": "]"}.get(symbol, "")
    if "stream end" in problem or source.position(opener)[0] != here.line:
        span = Span(source, opener, opener + 1)
        return Diagnostic("PF0102", f"this `{symbol}` is never closed", span, f"`{closer}` is missing")
    return Diagnostic(
        "PF0102",
        "`,` or a closing bracket is missing",
        here,
        f"`,` or `{closer}` was expected",
        help=f"if this is an expression, {BLOCK}",
    )


def _start_of(source: Source, line: int) -> int:
    start = 0
    for _ in range(line - 1):
        start = source.text.index("\n", start) + 1
    return start


def _open(text: str) -> bool:
    return text.count("(") > text.count(")") or text.count("[") > text.count("]")
