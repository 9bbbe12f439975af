"""Reading a spec: the file, what it extends, its size, the overrides, and then its parts."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from functools import partial
from pathlib import Path

from .build import Builder, value_spans
from .diagnostics import Diagnostic, Diagnostics, Note, SpecError, did_you_mean
from .dims import dim_values
from .document import check_shape
from .find import SHIPPED, Found, find
from .merge import merge, override, settled
from .model import Spec
from .namespace import check_namespace, unused
from .prelude import prelude
from .source import Source, Span
from .yaml import Entry, Mapping, Scalar, parse

_Chain = tuple[tuple[str, Span | None], ...]
"""The specs that led to the one being read: their identities, and where each names the next."""


def load(name: str | Path, size: str | None = None, overrides: SequenceOf[str] = ()) -> Spec:
    """The checked spec `name`: a file or a shipped name, `name@size` picks a size.

    `overrides` are `dim=value` or `path.to.field=value` texts, applied in order after everything else.
    Raises: SpecError with all that was found.
    """
    found = find(str(name), Path())
    return _complete(_load(found, size or found.size, overrides))


def load_text(
    text: str,
    name: str = "<text>",
    size: str | None = None,
    overrides: SequenceOf[str] = (),
    folder: Path | None = None,
    complete: bool = True,
) -> Spec:
    """The same from a text; files in its `extends` and `uses` are found from `folder`, if given.

    The specs in `uses` are read now only with `complete`, else when they are asked for. Raises: SpecError.
    """
    spec = _load(Found(Source(name, text), name, folder, None), size, overrides)
    return _complete(spec) if complete else spec


def _complete(spec: Spec) -> Spec:
    """The spec, once those that it uses have been read."""
    for used in spec.uses.values():
        _complete(used.spec)
    return spec


def _load(
    source: Found,
    size: str | None,
    overrides: SequenceOf[str],
    asked_at: Span | None = None,
    users: _Chain = (),
) -> Spec:
    folders: dict[Source, Path | None] = {}
    root = _document(source, (), folders)
    offered = _offered(root)
    size = _pick(root, offered, size, source, asked_at)
    root, origins = _with_size(root, size)
    for text in overrides:
        root, dim = override(root, text)
        if dim is not None:
            origins[dim] = "--set"
    found = Diagnostics()
    check_shape(root, found)
    build = Builder(found)
    own = build.blocks(root.get("blocks"))
    spec = Spec(
        name=_text(root, "model") or "",
        size=size,
        paper=_text(root, "paper"),
        source=source.source,
        dims=build.dims(root.get("dims"), lambda name: origins.get(name, "dims")),
        params=build.params(root.get("params")),
        blocks={**prelude(), **own},
        graphs=build.graphs(root.get("graphs")),
        sharding=build.sharding(root.get("sharding")),
        train=build.train(root.entries.get("train")),
        sample=build.sample(root.entries.get("sample")),
        precision=build.section(root.entries.get("precision")),
        weights=build.section(root.entries.get("weights")),
        uses=build.uses(root.get("uses"), lambda span: _used(span, folders, source, users)),
        sizes=offered,
        spans=value_spans(root),
    )
    check_namespace(spec, found)
    found.raise_errors()
    dim_values(spec.dims, found)
    found.raise_errors()
    return replace(spec, warnings=tuple(unused(spec)))


def _used(span: Span, folders: dict[Source, Path | None], user: Found, users: _Chain) -> Callable[[], Spec]:
    """How to read the spec that `span` names: from the folder of the file in which it stands."""
    chain = (*users, (user.identity, span))
    return partial(_read_used, span, folders.get(span.source, user.folder), chain)


def _read_used(span: Span, folder: Path | None, chain: _Chain) -> Spec:
    """Raises: SpecError, PF0209 for a spec that uses itself through others."""
    found = find(span.text.strip(), folder, span)
    _check_circle(found, chain, span, f"`{span.text}` uses this file", "let both extend a third spec that uses nothing")
    return _load(found, found.size, (), span, chain)


def _check_circle(found: Found, chain: _Chain, span: Span, what: str, help: str | None = None) -> None:
    """Raises: SpecError (PF0209) where a file is on the way to itself."""
    if found.identity in [identity for identity, _ in chain]:
        through = tuple(Note("through", place) for _, place in chain[:-1])
        message = f"{what}, so neither can be read"
        raise SpecError(Diagnostic("PF0209", message, span, "the circle closes here", through, help=help))


def _document(source: Found, chain: _Chain, folders: dict[Source, Path | None]) -> Mapping:
    """The file's document over the one it extends; `folders` is told where the names in each file start."""
    folders[source.source] = source.folder
    root = parse(source.source)
    _check_version(root)
    entry = root.entries.get("extends")
    if entry is None:
        return settled(root)
    if not isinstance(entry.value, Scalar) or not isinstance(entry.value.value, str):
        return root  # the schema reports it
    span = entry.value.content
    base = find(entry.value.text, source.folder, span)
    chain = (*chain, (source.identity, span))
    if len(chain) > 20:
        raise SpecError(Diagnostic("PF0209", "more than 20 specs extend one another in a row", span))
    _check_circle(base, chain, span, f"`{entry.value.text}` extends this file")
    below = _document(base, chain, folders)
    if base.size is not None:
        size = _pick(below, _offered(below), base.size, base, span)
        below, _ = _with_size(below, size)
        dropped = {k: e for k, e in below.entries.items() if k not in ("sizes", "default")}
        below = Mapping(dropped, below.span)
    own = Mapping({k: e for k, e in root.entries.items() if k != "extends"}, root.span)
    return merge(below, own)


def _check_version(root: Mapping) -> None:
    """A newer language may mean other things by the same words: nothing else is read then."""
    entry = root.entries.get("planform")
    if entry is not None and isinstance(entry.value, Scalar):
        version = entry.value.value
        if isinstance(version, int) and version != 1:
            raise SpecError(
                Diagnostic(
                    "PF0201",
                    f"version {version} of the language is unknown",
                    entry.value.content,
                    "1 is the only version",
                    expected=("1",),
                )
            )


def _offered(root: Mapping) -> tuple[str, ...]:
    sizes = root.get("sizes")
    return tuple(sizes.entries) if isinstance(sizes, Mapping) else ()


def _pick(
    root: Mapping, offered: tuple[str, ...], asked: str | None, source: Found, span: Span | None = None
) -> str | None:
    """The size to use: the one asked for, else the file's `default`, else none if it offers none."""
    default = root.get("default")
    if asked is None and isinstance(default, Scalar):
        asked, span = default.text, default.content
    if asked is None and not offered:
        return None
    here = span or (root.entries["sizes"].key.span if offered else Span(source.source, 0, 0))
    listed = ", ".join(offered)
    if asked is None:
        shipped = source.identity.startswith(f"{SHIPPED}:")
        name = source.identity.partition(":")[2] if shipped else source.source.name
        raise SpecError(
            Diagnostic(
                "PF0214",
                "this spec comes in several sizes, and none was asked for",
                here,
                help=f"choose one of {listed}, as in `{name}@{offered[0]}`",
                expected=offered,
            )
        )
    if asked not in offered:
        help = did_you_mean(asked, offered) or (f"it offers {listed}" if offered else "it has no `sizes`")
        raise SpecError(Diagnostic("PF0214", f"there is no size `{asked}`", here, help=help, expected=offered))
    return asked


def _with_size(root: Mapping, size: str | None) -> tuple[Mapping, dict[str, str]]:
    """The document with the size's dims laid over `dims`, and where those dims came from."""
    sizes = root.get("sizes")
    chosen = sizes.get(size) if isinstance(sizes, Mapping) and size is not None else None
    if not isinstance(chosen, Mapping):
        return root, {}
    dims = root.get("dims")
    before = dims if isinstance(dims, Mapping) else Mapping({}, chosen.span)
    merged = merge(before, chosen)
    assert isinstance(sizes, Mapping) and size is not None
    key = root.entries["dims"].key if "dims" in root.entries else sizes.entries[size].key
    return Mapping({**root.entries, "dims": Entry(key, merged)}, root.span), dict.fromkeys(
        chosen.entries, f"size {size}"
    )


def _text(root: Mapping, key: str) -> str | None:
    node = root.get(key)
    return node.text if isinstance(node, Scalar) else None
