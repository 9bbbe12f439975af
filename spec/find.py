"""Where a spec's text comes from: a file, or a name that ships with the package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from .diagnostics import Diagnostic, SpecError, did_you_mean
from .source import Source, Span
from .yaml import MAX_CHARACTERS

SHIPPED = "planform.models"


@dataclass(frozen=True)
class Found:
    """A spec's text. `identity` tells two files apart; `folder` is where its relative names start."""

    source: Source
    identity: str
    folder: Path | None
    size: str | None


def shipped() -> dict[str, Traversable]:
    """The specs in the package by name, subfolders one level deep included."""
    found: dict[str, Traversable] = {}
    try:
        root = resources.files(SHIPPED)
    except ModuleNotFoundError:
        return found
    for item in sorted(root.iterdir(), key=lambda t: t.name):
        inner = sorted(item.iterdir(), key=lambda t: t.name) if item.is_dir() else [item]
        for file in inner:
            if file.name.endswith(".yaml"):
                found.setdefault(file.name.removesuffix(".yaml"), file)
    return found


def find(name: str, folder: Path | None, span: Span | None = None) -> Found:
    """Reads the spec `name`: a path (relative to `folder`), or a shipped name, each with `@size` if wanted.

    Without a folder only shipped names are known. `span` is where the name was written, if in a spec.
    Raises: SpecError (PF0601..PF0603).
    """
    plain, _, size = name.rpartition("@")
    candidates = [(name, None)] + ([(plain, size)] if plain and size else [])
    for text, asked in candidates:
        if folder is not None and _is_file(folder / text):
            path = folder / text
            return Found(_read(path, span), str(path.resolve()), path.parent, asked)
    models = shipped()
    for text, asked in candidates:
        if text in models:
            file = models[text]
            display = f"{SHIPPED.rpartition('.')[2]}/{file.name}"
            source = Source(display, file.read_text(encoding="utf-8"))
            return Found(source, f"{SHIPPED}:{text}", None, asked)
    bare = candidates[-1][0]
    path = (folder or Path()) / bare
    if folder is not None and _exists(path):
        what = "a folder" if path.is_dir() else "not a regular file"
        raise SpecError(Diagnostic("PF0601", f"`{bare}` is {what}, not a spec", span))
    looks_like_path = "/" in bare or bare.endswith((".yaml", ".yml"))
    near = did_you_mean(bare, _neighbours(path) if looks_like_path else models)
    help = near or "the specs that ship are " + ", ".join(models)
    raise SpecError(Diagnostic("PF0601", f"there is no spec `{bare}`", span, help=help))


def _neighbours(path: Path) -> list[str]:
    try:
        folder = path.parent
        return [str(path.parent / p.name) for p in folder.iterdir() if p.suffix in (".yaml", ".yml")]
    except OSError:
        return []


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a null character, is no file
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _read(path: Path, span: Span | None) -> Source:
    try:
        # UTF-8 needs up to four bytes a character; what is longer can't be within the limit.
        if path.stat().st_size > 4 * MAX_CHARACTERS:
            raise SpecError(
                Diagnostic("PF0602", f"`{path}` is too large for a spec ({path.stat().st_size:,} bytes)", span)
            )
        data = path.read_bytes()
    except OSError as error:
        raise SpecError(Diagnostic("PF0602", f"can't read `{path}`: {error.strerror}", span)) from None
    try:
        return Source(str(path), data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SpecError(
            Diagnostic("PF0603", f"`{path}` is not UTF-8 text (line {line})", span, help="save it as UTF-8")
        ) from None
