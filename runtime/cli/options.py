"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np

    from planform.spec import Spec

SpecName = Annotated[
    str,
    typer.Argument(metavar="SPEC", help="A spec file, a shipped name (`name@size` picks a size), or a run's folder."),
]
Size = Annotated[str | None, typer.Option("--size", metavar="NAME", help="One of the spec's sizes.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Overrides a dim (`d=64`) or a field (`train.steps=10`)."),
]
With = Annotated[
    list[str] | None,
    typer.Option("--with", metavar="NAME=RUN", help="The run whose weights a spec under `uses` takes."),
]
Environment = Annotated[
    str | None,
    typer.Option("--environment", metavar="DOMAIN:TASK", help="Of the control suite. [default: what the spec says]"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for tools.")]
Fix = Annotated[
    list[str] | None,
    typer.Option(
        "--fix",
        metavar="INPUT=HxW|FILE",
        help="An input that is known: coordinates of a grid of points (`coords=32x32`), or an .npy file.",
    ),
]
GraphName = Annotated[
    str | None,
    typer.Option(
        "--graph",
        metavar="NAME",
        help="Which graph, where there are several; `fit` or `sample`, an inner loop or a sampler.",
    ),
]


def load_spec(name: str, size: str | None = None, overrides: Sequence[str] | None = None) -> Spec:
    """The spec that the options mean: a file's, a shipped one, or that of a run, with its weights' sizes.

    Raises: SpecError; UserError for overrides that a trained model can't take.
    """
    from pathlib import Path

    from planform.spec import load

    if (Path(name) / "run.json").is_file():
        from ..errors import UserError
        from ..run import spec_of_run

        if size:
            raise UserError(f"the run in {name} has its size", help="leave --size out")
        return spec_of_run(name, tuple(overrides or ()))
    return load(name, size, tuple(overrides or ()))


def label(spec: Spec) -> str:
    """`gemma2@2b`."""
    name = spec.name or spec.source.name
    return f"{name}@{spec.size}" if spec.size else name


def one_of(option: str, value: str, choices: Sequence[str]) -> str:
    """Raises: UserError for a value that isn't among the choices."""
    from planform.spec import did_you_mean

    from ..errors import UserError

    if value not in choices:
        help = did_you_mean(value, choices) or "one of " + ", ".join(choices)
        raise UserError(f"{option} {value} means nothing", help=help)
    return value


def parse_shape(option: str, text: str, axes: int) -> tuple[int, ...]:
    """`64` along every axis, or `64x96`. Raises: UserError."""
    from ..errors import UserError

    parts = text.lower().split("x")
    if not all(p.isdigit() and int(p) for p in parts) or len(parts) not in (1, axes):
        raise UserError(f"{option} {text} is no resolution", help="64, or " + "x".join(["64"] * axes))
    sizes = tuple(int(p) for p in parts)
    return sizes * axes if len(sizes) == 1 else sizes


def parse_fixed(texts: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Arrays by input: `coords=32x32`, the centres of a grid's cells float32[points, axes], or `coords=FILE.npy`.

    Raises: UserError.
    """
    from pathlib import Path

    from ..data import grid
    from ..data.arrays import load_arrays
    from ..errors import UserError

    found = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        sizes = value.lower().split("x")
        if not (name and equals and value):
            raise UserError(f"--fix {text} means nothing", help="--fix coords=32x32, or --fix coords=FILE.npy")
        if all(s.isdigit() and int(s) for s in sizes):
            found[name] = grid(*map(int, sizes))
        elif Path(value).suffix == ".npy":
            (found[name],) = load_arrays(value).values()
        else:
            raise UserError(f"--fix {text}: {value} is no resolution and no .npy file", help="--fix coords=32x32")
    return found


def parse_slice(option: str, text: str) -> tuple[int, int]:
    """`0:16`. Raises: UserError."""
    from ..errors import UserError

    first, colon, end = text.partition(":")
    if not (colon and first.isdigit() and end.isdigit() and int(first) < int(end)):
        raise UserError(f"{option} {text} means nothing", help=f"{option} 0:16")
    return int(first), int(end)
