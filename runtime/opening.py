"""The data of a training program: what its source's name means, and the files that it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planform.compiler.ir import Graph, Input
from planform.compiler.ops.linear import Embed
from planform.compiler.program import Program
from planform.compiler.recipes import Recipe
from planform.compiler.types import TensorType

from .data import (
    ArrayData,
    DataSource,
    ImageData,
    LatentData,
    Share,
    SignalData,
    TextData,
    Tokenizer,
    View,
    load_arrays,
    load_pictures,
    load_signals,
    load_tokenizer,
    read_corpus,
)
from .errors import UserError
from .functa.functaset import Functaset

Files = str | Path | Sequence[str | Path] | None


@dataclass(frozen=True)
class Asked:
    """What a source is opened for: the program, this process's share of its batches, the run's folder, and what the
    command line gives in place of the spec's. `ray` is the address of a cluster that actors play on."""

    program: Program
    share: Share
    folder: Path
    files: Files
    tokenizer: str | Path | None
    ray: str | None = None

    @property
    def recipe(self) -> Recipe:
        return self.program.data

    def __getitem__(self, argument: str) -> Any:
        return self.recipe.arguments[argument]


def open_data(
    chosen: Program, share: Share, folder: Path, files: Files, tokenizer: str | Path | None, ray: str | None = None
) -> tuple[DataSource, Tokenizer | None]:
    """The data of a program, and the tokenizer where they are text; the others as `train` takes them.

    Raises: UserError.
    """
    asked = Asked(chosen, share, folder, files, tokenizer, ray)
    if chosen.data.name == "text":
        return _text(asked)
    return OPENERS[chosen.data.name](asked), None


def _text(asked: Asked) -> tuple[TextData, Tokenizer]:
    program, name = asked.program, asked.recipe.fields[0]
    words = load_tokenizer(asked.tokenizer if asked.tokenizer is not None else asked["tokenizer"])
    for update in program.updates:
        _check_vocabulary(update.loss, name, words)
    corpus = read_corpus(asked.files if asked.files is not None else asked["files"], heldout=asked["heldout"])
    return TextData(corpus, words, asked["length"], asked.share, asked.folder / "data", program.seed, name), words


def _arrays(asked: Asked) -> DataSource:
    file, fields = _one_file(asked, "DATA.npz"), asked.recipe.fields
    found = load_arrays(file)
    missing = [f for f in fields if f not in found]
    if missing:
        raise UserError(f"{file} has no `{missing[0]}`", help=f"it has {', '.join(found)}")
    picked = {f: found[f] for f in fields}
    return ArrayData(picked, asked.share, asked.program.seed, portion=asked["heldout"], source=str(file))


def _images(asked: Asked) -> DataSource:
    file, fields = _one_file(asked, "IMAGES"), asked.recipe.fields
    pictures = load_pictures(file, _channels(asked.program))
    seen = view_of(asked.recipe.arguments)
    return ImageData(pictures, fields, seen, asked.share, asked.program.seed, asked["heldout"], str(file))


def _signals(asked: Asked) -> DataSource:
    file, fields = _one_file(asked, "IMAGES"), asked.recipe.fields
    signals, apart = load_signals(file, *_sizes(asked.program))
    return SignalData(signals, fields, asked.share, asked.program.seed, apart, asked["heldout"], str(file))


def _functaset(asked: Asked) -> DataSource:
    held = Functaset.open(_one_file(asked, "FUNCTASET"))
    return LatentData(held, asked.recipe.fields, _latent_sizes(asked.program), asked.share, asked.program.seed)


def _replay(asked: Asked) -> DataSource:
    from .agents import open_replay  # environments are an extra

    return open_replay(asked.program, asked.share, asked.folder, asked.ray)


OPENERS: Mapping[str, Callable[[Asked], DataSource]] = {
    "arrays": _arrays,
    "images": _images,
    "signals": _signals,
    "functaset": _functaset,
    "replay": _replay,
}
"""All sources but text, by their names in a spec."""


def _one_file(asked: Asked, example: str) -> str | Path:
    """Where the data are, of a program that takes one file or folder. Raises: UserError."""
    given = asked.files if asked.files is not None else asked["file"]
    if isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 1:
        given = given[0]
    if not isinstance(given, (str, Path)):
        many = "several are" if given else "none are"
        raise UserError(
            f"this program trains on one file or folder of {asked.recipe.name}, {many} given", help=f"--files {example}"
        )
    return given


def _types(chosen: Program) -> dict[str, TensorType]:
    """Of what the losses read, by name."""
    return {v.name: v.type for u in chosen.updates for v in (*u.loss.inputs, *u.heldout.inputs)}


def _sizes(chosen: Program) -> tuple[int, int]:
    """(axes, channels) of the signals that a program takes. Raises: UserError where the spec leaves them open."""
    types = _types(chosen)
    found = []
    for name, dims in zip(chosen.data.fields[:2], ("points, axes", "points, channels")):
        t = types.get(name)
        if t is None or t.rank != 3 or not isinstance(t.sizes[-1], int):
            raise UserError(
                f"`{name}` must be float[batch, {dims}] with a known last size, it is {t or 'not used'}",
                help="signals(COORDS, VALUES) names the coordinates and what the signals are there",
            )
        found.append(t.sizes[-1])
    return found[0], found[1]


def _channels(chosen: Program) -> int:
    """Of the images that a program takes. Raises: UserError where the spec leaves them open."""
    name = chosen.data.fields[0]
    t = _types(chosen).get(name)
    if t is None or t.rank != 4 or not isinstance(t.sizes[-1], int):
        raise UserError(
            f"`{name}` must be float[batch, height, width, channels] with known channels, it is {t or 'not used'}",
            help="images(IMAGE, LABEL) names the images and what they show",
        )
    return t.sizes[-1]


def view_of(arguments: Mapping[str, Any]) -> View:
    """How a program that trains on `images` sees them, from the arguments in its spec. Raises: UserError."""
    given = {k: arguments[k] for k in ("crop", "shift", "flip", "centre")}
    size = arguments["size"]
    for key in ("mean", "std"):
        if (value := arguments[key]) is not None:
            given[key] = tuple(map(float, value)) if isinstance(value, list) else (float(value),)
    return View(None if size is None else int(size), **given)


def _latent_sizes(chosen: Program) -> list[int | None]:
    """Sizes of one latent that a program takes, None where they are open."""
    t = _types(chosen).get(chosen.data.fields[0])
    if t is None:
        raise UserError(f"`{chosen.data.fields[0]}` is not used", help="functaset(LATENT) names the latents")
    return [n if isinstance(n, int) else None for n in t.sizes[1:]]


def _check_vocabulary(graph: Graph, name: str, words: Tokenizer) -> None:
    """Raises: UserError when the table that embeds the tokens is smaller than the vocabulary."""
    for node in graph.walk():
        tokens = node.inputs[0] if node.inputs else None
        if isinstance(node.op, Embed) and isinstance(tokens, Input) and tokens.name == name:
            dim = node.inputs[1].type.dims[0]
            if isinstance(dim.size, int) and dim.size < words.vocab_size:
                raise UserError(
                    f"the tokenizer {words.name} has {words.vocab_size} tokens, the model's table {dim.size}",
                    help=f"--set {dim.name}={words.vocab_size}" if dim.name else None,
                )
