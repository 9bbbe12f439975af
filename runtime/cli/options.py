"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from planform.spec import Spec

SpecName = Annotated[
    str, typer.Argument(metavar="SPEC", help="A spec file or a shipped name; `name@size` picks a size.")
]
Size = Annotated[str | None, typer.Option("--size", metavar="NAME", help="One of the spec's sizes.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Overrides a dim (`d=64`) or a field (`train.steps=10`)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for tools.")]
GraphName = Annotated[str | None, typer.Option("--graph", metavar="NAME", help="Which graph, where there are several.")]


def load_spec(name: str, size: str | None = None, overrides: Sequence[str] | None = None) -> Spec:
    """The spec that the options mean. Raises: SpecError."""
    from planform.spec import load

    return load(name, size, tuple(overrides or ()))


def label(spec: Spec) -> str:
    """`gemma2@2b`."""
    name = spec.name or spec.source.name
    return f"{name}@{spec.size}" if spec.size else name
