"""What is wrong with an expression that doesn't parse, in the reader's words."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from .diagnostics import Diagnostic, SpecError
from .source import Source, Span

CLOSER = {"(": ")", "[": "]", "{": "}"}
_LEXEME = re.compile(r'"[^"\n]*"|#[^\n]*|[()\[\]{}]')


@dataclass(frozen=True)
class BracketFault:
    """An opener never closed (`closer` is None), a closer without opener, or a pair that doesn't match."""

    opener: Span | None
    closer: Span | None


def bracket_fault(source: Source, start: int, end: int, max_depth: int) -> BracketFault | None:
    """The first fault among the brackets of a slice; strings and comments don't count.

    Raises: SpecError (PF0116) when brackets nest deeper than `max_depth`.
    """
    stack: list[Span] = []
    for match in _LEXEME.finditer(source.text, start, end):
        text = match.group()
        here = Span(source, match.start(), match.end())
        if text in CLOSER:
            stack.append(here)
            if len(stack) > max_depth:
                raise SpecError(Diagnostic("PF0116", f"brackets are nested more than {max_depth} levels deep", here))
        elif text in CLOSER.values():
            if not stack:
                return BracketFault(None, here)
            if CLOSER[stack[-1].text] != text:
                return BracketFault(stack[-1], here)
            stack.pop()
    return BracketFault(stack[-1], None) if stack else None


def explain(
    rule: str, source: Source, start: int, end: int, error: UnexpectedInput, fault: BracketFault | None
) -> Diagnostic:
    """Turns lark's error over `source.text[start:end]` into a diagnostic at its exact place."""
    content_end = start + len(source.text[start:end].rstrip())
    at = content_end
    if isinstance(error, UnexpectedCharacters):
        at = start + (error.pos_in_stream or 0)
        return _character(source, at, end)
    assert isinstance(error, UnexpectedToken)
    token = error.token
    ended = token.type == "$END"
    if not ended:
        at = start + (token.start_pos or 0)
    accepts = frozenset(error.accepts or error.expected)
    # A value or `name =` inside an open bracket, or the end: the bracket is what was forgotten.
    forgotten = ended or token.type in ("NAME", "EQUALS", "NUMBER", "STRING")
    opener = fault.opener if fault is not None and fault.closer is None else None
    if forgotten and opener is not None and opener.start < at:
        return _unclosed(opener)
    if fault is not None and fault.closer is not None and fault.closer.start == at:
        return _closer(fault)
    if ended:
        last = Span(source, max(start, content_end - 1), content_end)
        return Diagnostic(
            "PF0111",
            "the expression ends too early",
            last,
            f"{_human(accepts)[0]} must follow",
            expected=_human(accepts),
        )
    here = Span(source, at, at + len(token))
    pair = source.text[max(start, at - 1) : at + 1]
    if source.text[at : at + 2] == "==":
        at, pair = at + 1, "=="
    if pair == "**":
        return Diagnostic(
            "PF0112",
            "`**` is not an operator",
            Span(source, at - 1, at + 1),
            help="powers are written `x ^ n`",
        )
    if pair == "==":
        return Diagnostic(
            "PF0112",
            "specs have no comparisons",
            Span(source, at - 1, at + 1),
            help="`=` names a value or an argument",
        )
    if token.type == "EQUALS":
        return Diagnostic(
            "PF0112",
            "`=` can't stand here",
            here,
            "only a plain name can be given a value",
            help="a definition is `name = expr` on a line of its own; an argument is `key=value`",
        )
    starts_value = token.type in ("NAME", "NUMBER", "STRING", "LSQB", "LPAR")
    if starts_value and "PIPE" in accepts:
        inside = "COMMA" in accepts
        return Diagnostic(
            "PF0113",
            "two values stand side by side",
            here,
            "an operator or `,` is missing before this" if inside else "an operator is missing before this",
            help=None if inside else "chain with `>>`, combine with `+ - * /`",
            expected=_human(accepts),
        )
    expected = _human(accepts)
    return Diagnostic(
        "PF0112",
        f"unexpected `{token}`",
        here,
        f"{_either(expected)} was expected" if expected else "",
        expected=expected,
    )


def _unclosed(opener: Span) -> Diagnostic:
    closer = CLOSER[opener.text]
    return Diagnostic(
        "PF0120",
        f"this `{opener.text}` is never closed",
        opener,
        f"`{closer}` is missing",
        expected=(f"`{closer}`",),
    )


def _closer(fault: BracketFault) -> Diagnostic:
    assert fault.closer is not None
    if fault.opener is None:
        return Diagnostic("PF0120", f"this `{fault.closer.text}` closes nothing", fault.closer)
    wanted = CLOSER[fault.opener.text]
    return Diagnostic(
        "PF0120",
        f"`{fault.closer.text}` doesn't close `{fault.opener.text}`",
        fault.closer,
        f"`{wanted}` was expected",
        expected=(f"`{wanted}`",),
    )


_CHARACTERS = {
    "|": "blocks are chained with `>>`",
    ">": "blocks are chained with `>>`; specs have no comparisons",
    "<": "specs have no comparisons",
    "'": 'strings stand in double quotes: "b t d -> b d"',
    "!": "specs have no logic; choose between blocks by name",
    "@": "matrix products are ops such as `linear`",
    "{": "lists are written `[a, b]`; there are no mappings inside expressions",
    "}": "lists are written `[a, b]`; there are no mappings inside expressions",
    ":": "arguments are written `key=value`",
    ";": "a new line starts a new definition",
    "%": "specs have `/` (exact) and `//` (rounds down), no remainder",
    "\\": "a line needs no mark to continue on the next",
    "×": "multiplication is `*`",
    "·": "multiplication is `*`",
    "−": "the minus sign is `-`",
    "–": "the minus sign is `-`",
    "“": 'quotes are straight: "..."',
    "”": 'quotes are straight: "..."',
}


def _character(source: Source, at: int, end: int) -> Diagnostic:
    char = source.text[at]
    here = Span(source, at, at + 1)
    if char == '"':
        return Diagnostic(
            "PF0120",
            "this string is never closed",
            here,
            '`"` is missing on this line',
            help="a string stands on one line",
        )
    if char == ">" and source.text[at - 1 : at] == "-":
        return Diagnostic(
            "PF0112",
            "`->` only stands inside a pattern string",
            Span(source, at - 1, at + 1),
            help='write the whole pattern in quotes: "b t d -> b d"; blocks are chained with `>>`',
        )
    return Diagnostic("PF0112", f"unexpected `{char}`", here, help=_CHARACTERS.get(char))


def _human(accepts: frozenset[str]) -> tuple[str, ...]:
    """The parser's terminals in the reader's words, most telling first."""
    words: list[str] = []
    if "NUMBER" in accepts:
        words.append("a value")
    elif "NAME" in accepts:
        words.append("a name")
    if "PIPE" in accepts:
        words.append("an operator")
    for terminal, text in (
        ("COMMA", "`,`"),
        ("RPAR", "`)`"),
        ("RSQB", "`]`"),
        ("EQUALS", "`=`"),
        ("LSQB", "`[`"),
    ):
        if terminal in accepts and not (terminal == "LSQB" and "NUMBER" in accepts):
            words.append(text)
    if not words and "LPAR" in accepts:
        words.append("`(`")
    return tuple(words) or ("the end",)


def _either(words: tuple[str, ...]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]
