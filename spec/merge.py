"""`extends` and `--set`: trees laid over trees. Every entry keeps its place in the file it came from."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .diagnostics import Diagnostic, SpecError, did_you_mean
from .schema import Document
from .source import Source, Span
from .yaml import Entry, Mapping, Node, Scalar, parse_value

_FREE = ("dims", "params", "blocks", "graphs", "sizes")
"""Sections whose keys the author chooses: `--set` may change what is there, not add."""


def is_null(node: Node) -> bool:
    """A written null (`null`, `~`), which deletes; an empty value is a slip and doesn't."""
    return isinstance(node, Scalar) and node.style == "plain" and node.text != "" and node.value is None


def merge(base: Mapping, over: Mapping, path: tuple[str, ...] = ()) -> Mapping:
    """`over` on top of `base`: mappings deeply, everything else replaced, null deletes.

    Raises: SpecError (PF0206) where null has nothing to delete.
    """
    result: dict[str, Entry | None] = dict(base.entries)
    keys = {_identity(key, path): key for key in base.entries}
    renamed: dict[str, str] = {}
    for name, entry in over.entries.items():
        old = keys.get(_identity(name, path))
        if is_null(entry.value):
            if old is None:
                raise SpecError(_nothing_to_delete(entry.key, base.entries))
            result[old] = None
            continue
        before = base.entries[old].value if old is not None else None
        if isinstance(before, Mapping) and isinstance(entry.value, Mapping):
            value: Node = merge(before, entry.value, (*path, name))
        elif isinstance(entry.value, Mapping):
            value = merge(Mapping({}, entry.value.span), entry.value, (*path, name))
        else:
            value = entry.value
        result[old or name] = Entry(entry.key, value)
        renamed[old or name] = name
    entries = {renamed.get(key, key): entry for key, entry in result.items() if entry is not None}
    return Mapping(entries, over.span)


def settled(root: Mapping) -> Mapping:
    """A document that extends nothing. Raises: SpecError (PF0206) for a null, which has nothing to delete."""
    return merge(Mapping({}, root.span), root)


def _identity(key: str, path: tuple[str, ...]) -> str:
    """What makes two keys the same entry: the text, or under `blocks` the block's name without its arguments."""
    return _block(key) if path == ("blocks",) else key


def _block(key: str) -> str:
    return key.partition("(")[0].strip()


def _nothing_to_delete(key: Scalar, entries: Iterable[str]) -> Diagnostic:
    return Diagnostic(
        "PF0206",
        f"null deletes an entry, but there is no `{key.text}` to delete",
        key.span,
        help=did_you_mean(key.text, entries) or "only what `extends` brought in can be deleted; else remove the line",
    )


def split_override(text: str) -> tuple[Source, list[Span], Span]:
    """`train.batch=16` as its source, the spans of the path's parts and the span of the value.

    Raises: SpecError (PF0207) when it isn't of that form.
    """
    source = Source(f"<--set {text}>", text)
    name, equals, _ = text.partition("=")
    if not equals or name.count(".") > 10 or not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_@-]+)*", name.strip()):
        raise SpecError(
            Diagnostic(
                "PF0207",
                "an override is `name=value`",
                Span(source, 0, len(text)),
                help="`--set d=512` sets a dim, `--set train.batch=16` a field",
            )
        )
    parts, at = [], len(name) - len(name.lstrip())
    for part in name.strip().split("."):
        parts.append(Span(source, at, at + len(part)))
        at += len(part) + 1
    start = len(name) + 1
    start += len(text[start:]) - len(text[start:].lstrip())
    return source, parts, Span(source, start, max(start, len(text.rstrip())))


def override(root: Mapping, text: str) -> tuple[Mapping, str | None]:
    """The document with one override applied, and the dim it set, if it set one.

    Raises: SpecError (PF0207) for an unknown name or a value that can't be read.
    """
    _, parts, value_span = split_override(text)
    names = [part.text for part in parts]
    dims = root.get("dims")
    dim_names = list(dims.entries) if isinstance(dims, Mapping) else []
    if len(names) == 1 and names[0] not in Document.model_fields:
        if names[0] not in dim_names:
            raise SpecError(
                Diagnostic(
                    "PF0207",
                    f"there is no dim `{names[0]}` to set",
                    parts[0],
                    help=did_you_mean(names[0], [*dim_names, *Document.model_fields])
                    or "fields are set by their path, such as `train.batch=16`",
                )
            )
        names, parts = ["dims", names[0]], [parts[0], parts[0]]
    if names[0] not in Document.model_fields:
        raise SpecError(
            Diagnostic(
                "PF0207",
                f"there is no section `{names[0]}`",
                parts[0],
                help=did_you_mean(names[0], Document.model_fields),
            )
        )
    result = _set(root, names, parts, _value(value_span), 0)
    return result, names[1] if names[0] == "dims" and len(names) == 2 else None


def _set(node: Mapping, names: list[str], parts: list[Span], value: Node, depth: int) -> Mapping:
    name, part = names[depth], parts[depth]
    above = tuple(names[:depth])
    old = next((key for key in node.entries if _identity(key, above) == _identity(name, above)), None)
    key = node.entries[old].key if old is not None else Scalar(name, "plain", part, part)
    if old is None and (depth == 1 and names[0] in _FREE or depth == 0 and names[0] in _FREE and len(names) > 1):
        raise SpecError(
            Diagnostic(
                "PF0207",
                f"there is no `{'.'.join(names[: depth + 1])}` to set",
                part,
                help=did_you_mean(name, [_block(k) for k in node.entries]),
            )
        )
    if depth == len(names) - 1:
        if is_null(value):
            if old is None:
                raise SpecError(_nothing_to_delete(key, node.entries))
            return Mapping({k: e for k, e in node.entries.items() if k != old}, node.span)
        new = value
    else:
        below = node.entries[old].value if old is not None else Mapping({}, part)
        if not isinstance(below, Mapping):
            raise SpecError(
                Diagnostic("PF0207", f"`{'.'.join(names[: depth + 1])}` holds no fields", part, "it is one value")
            )
        new = _set(below, names, parts, value, depth + 1)
    entries = dict(node.entries)
    # The signature of a block stays as its file writes it: `blocks.attend=...` changes the body only.
    last = depth == len(names) - 1 and names[0] != "blocks"
    here = Scalar(name, "plain", part, part) if last else key
    entries[old if old is not None else name] = Entry(here, new)
    return Mapping(entries, node.span)


def _value(span: Span) -> Node:
    """Lists, mappings and quoted text are YAML; anything else stands as it is: expressions need no quotes."""
    if span.text[:1] in ("[", "{", "'", '"'):
        return parse_value(span.source, span.start)
    return Scalar(span.text, "plain", span, span)
