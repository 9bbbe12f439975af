"""Checks a document's shape against the schema; pydantic's findings become diagnostics at their place."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from .diagnostics import Diagnostic, Diagnostics, did_you_mean
from .expressions import LARGEST, too_large
from .schema import Document
from .source import Span
from .yaml import Mapping, Node, Scalar, Sequence

_ELSEWHERE = {
    "name": "`model` names the model",
    "version": "`planform: 1` is the language's version",
    "inputs": "`inputs` belongs to a graph: graphs: {lm: {inputs: ...}}",
    "body": "`body` belongs to a graph: graphs: {lm: {body: ...}}",
    "loss": "`loss` belongs under `train`",
    "optimizer": "`optimizer` belongs under `train`",
    "data": "`data` belongs under `train`",
    "batch": "`batch` belongs under `train`",
    "steps": "`steps` belongs under `train`",
}


def check_shape(root: Mapping, found: Diagnostics) -> None:
    """Adds one finding (PF020x) for each key or value that the schema refuses."""
    _check_empty(root, (), found)
    try:
        Document.model_validate(plain(root))
    except ValidationError as error:
        for fault in error.errors(include_url=False, include_context=True):
            if found.full:
                return
            if fault["input"] is not None:  # what is empty is reported already
                found.add(_diagnostic(root, fault))


def _check_empty(node: Mapping, path: tuple[str, ...], found: Diagnostics) -> None:
    for name, entry in node.entries.items():
        if isinstance(entry.value, Mapping):
            _check_empty(entry.value, (*path, name), found)
        elif isinstance(entry.value, Scalar) and entry.value.value is None:
            found.add(
                Diagnostic(
                    "PF0205",
                    f"`{'.'.join((*path, name))}` is empty",
                    entry.key.span,
                    help="give it a value, or remove the line",
                )
            )


def plain(node: Node) -> Any:
    """The tree as Python's own values."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Sequence):
        return [plain(item) for item in node.items]
    return {key: plain(entry.value) for key, entry in node.entries.items()}


def place(node: Node, key: Scalar | None = None) -> Span:
    """Where to point for a value: a scalar itself, else the key, else the first character."""
    if isinstance(node, Scalar) and node.content.end > node.content.start:
        return node.content
    if key is not None:
        return key.span
    return Span(node.span.source, node.span.start, min(node.span.end, node.span.start + 1))


def _diagnostic(root: Mapping, fault: Any) -> Diagnostic:
    loc = tuple(part for part in fault["loc"])
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "missing":
        return _missing(root, loc)
    node: Node | None = root
    key: Scalar | None = None
    names: list[str] = []
    for part in loc:
        if part == "[key]":
            return _bad_key(key, names)
        if isinstance(node, Mapping) and str(part) in node.entries:
            entry = node.entries[str(part)]
            node, key = entry.value, entry.key
            names.append(str(part))
        elif isinstance(node, Sequence) and isinstance(part, int) and part < len(node.items):
            node = node.items[part]
    assert node is not None
    if kind == "extra_forbidden":
        return _unknown_key(key, names)
    path = ".".join(names) or "the document"
    at = place(node, key)
    value = node.value if isinstance(node, Scalar) else None
    if kind.startswith(("int", "less_than")) and isinstance(value, (int, float)) and abs(value) > LARGEST:
        return too_large(at)
    wanted, help = _wanted(kind, context, fault)
    if names[:1] == ["planform"]:
        return Diagnostic(
            "PF0201",
            "this version of the language is unknown",
            at,
            "1 is the only version",
            expected=("1",),
        )
    message = f"`{path}` must be {wanted}"
    if kind in ("literal_error", "string_type", "int_type", "bool_type") and isinstance(node, Scalar):
        help = help or did_you_mean(node.text, _choices(context))
    if isinstance(node, Sequence) and kind in ("expression", "text"):
        help = "YAML read a list here; an expression that begins with `[` stands in a block scalar (`|`)"
    if isinstance(node, Mapping) and kind in ("expression", "text"):
        help = "YAML read a mapping here; inside an expression arguments are written `key=value`"
    return Diagnostic("PF0205", message, at, f"this is {_what(node)}", help=help, expected=(wanted,))


def _missing(root: Mapping, loc: tuple[Any, ...]) -> Diagnostic:
    *above, name = loc
    node: Node = root
    key: Scalar | None = None
    for part in above:
        if isinstance(node, Mapping) and str(part) in node.entries:
            key, node = node.entries[str(part)].key, node.entries[str(part)].value
    if key is None:
        first = next(iter(root.entries.values()), None)
        span = first.key.span if first else Span(root.span.source, 0, 0)
        code = "PF0201" if name == "planform" else "PF0204"
        help = {"planform": "start with `planform: 1`", "model": "add `model: NAME`"}.get(
            str(name), "a spec has at least one graph: graphs: {lm: {inputs: ..., body: ...}}"
        )
        return Diagnostic(code, f"the spec has no `{name}`", span, help=help)
    owner = ".".join(str(part) for part in above)
    return Diagnostic("PF0204", f"`{owner}` has no `{name}`", key.span, f"`{name}:` must stand below this")


def _unknown_key(key: Scalar | None, names: list[str]) -> Diagnostic:
    assert key is not None
    word, above = names[-1], names[:-1]
    allowed = list(_fields(above))
    where = f" in `{'.'.join(above)}`" if above else ""
    help = did_you_mean(word, allowed)
    if help is None and not above:
        help = _ELSEWHERE.get(word)
    if help is None:
        help = "known here: " + ", ".join(allowed)
    return Diagnostic("PF0202", f"unknown key `{word}`{where}", key.span, help=help, expected=tuple(allowed))


def _bad_key(key: Scalar | None, names: list[str]) -> Diagnostic:
    assert key is not None
    what = "block" if names[:1] == ["blocks"] else "name"
    help = (
        "write `name` or `name(parameter, other=default)`"
        if what == "block"
        else "names hold letters, digits and `_`, and don't begin with a digit"
    )
    return Diagnostic(
        "PF0203",
        f"`{key.text}` can't name a {what}" if what == "block" else f"`{key.text}` is not a name",
        key.span,
        help=help,
    )


def _fields(path: list[str]) -> tuple[str, ...]:
    """The keys that the schema knows below a path; none where any name may stand."""
    annotation: Any = Document
    for part in path:
        if annotation is None:
            return ()
        model = _model(annotation)
        if model is not None:
            info = model.model_fields.get(part)
            annotation = info.annotation if info else None
        else:
            annotation = next((get_args(a)[1] for a in _alternatives(annotation) if len(get_args(a)) == 2), None)
    model = _model(annotation)
    return tuple(model.model_fields) if model else ()


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    args = get_args(annotation)
    return tuple(a for a in args if a is not type(None)) if type(None) in args else (annotation,)


def _model(annotation: Any) -> type[BaseModel] | None:
    for a in _alternatives(annotation):
        if isinstance(a, type) and issubclass(a, BaseModel):
            return a
    return None


def _choices(context: dict[str, Any]) -> list[str]:
    text = str(context.get("expected", ""))
    return [part.strip("' ") for part in text.replace(" or ", ",").split(",") if part.strip()]


def _wanted(kind: str, context: dict[str, Any], fault: Any) -> tuple[str, str | None]:
    """What a value should have been, and advice if there is any."""
    if kind in ("expression", "text", "words"):
        return fault["msg"], None
    if kind == "literal_error":
        choices = _choices(context)
        return "one of " + ", ".join(f"`{c}`" for c in choices), None
    if kind in ("int_type", "int_from_float"):
        return "a whole number", None
    if kind == "greater_than_equal":
        return f"at least {context['ge']}", None
    if kind == "less_than_equal":
        return f"at most {context['le']:,}", None
    if kind == "bool_type":
        return "true or false", "YAML 1.2 knows no `yes`, `no`, `on` and `off`"
    if kind == "string_type":
        return "text", "put it in quotes"
    if kind == "string_pattern_mismatch":
        return "a name", "names hold letters, digits and `_`, and don't begin with a digit"
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return "a mapping", "write `key: value` lines, indented below"
    if kind == "list_type":
        return "a list", "write [a, b]"
    return str(fault["msg"]).removeprefix("Input should be "), None


def _what(node: Node) -> str:
    if isinstance(node, Sequence):
        return "a list"
    if isinstance(node, Mapping):
        return "a mapping"
    value = node.value
    if isinstance(value, bool):
        return f"`{node.text}`"
    if isinstance(value, (int, float)):
        return "a number"
    return "text"
