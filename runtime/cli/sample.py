"""`planform sample`: what a generative model makes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, Set

EPILOG = "Example: planform sample runs/diffusion --out samples --count 40 --set guidance=3"


def add(app: typer.Typer) -> None:
    app.command(epilog=EPILOG)(sample)


def sample(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run whose spec has a `sample` section.")],
    target: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where samples and pictures go.")],
    count: Annotated[int, typer.Option("--count", min=1, help="How many.")] = 40,
    labels: Annotated[
        list[int] | None, typer.Option("--label", min=0, help="A class; several take turns. [default: all]")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Of each, where it takes some. [default: as the spec says]")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="N|HxW", help="Of latents as pictures. [default: the signals' own]"),
    ] = None,
    functaset: Annotated[
        Path | None,
        typer.Option("--functaset", metavar="FOLDER", help="Of latents. [default: where it was in training]"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the draws.")] = 0,
    step: Annotated[int | None, typer.Option("--step", min=0, help="Of the checkpoint. [default: the newest]")] = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Sample a generative model: PNG files and a sheet of all, and the samples as arrays. Latents of a functaset are
    rendered by its field."""
    from ..sample import sample as run_
    from .console import out, print_json
    from .options import parse_shape

    found = run_(run, target, count=count, labels=labels or (), size=parse_shape("--size", size, 2) if size else None,
                 functaset=functaset, steps=steps, seed=seed, step=step, overrides=tuple(overrides or ()))  # fmt: skip
    if as_json:
        print_json(found)
        return
    shape, each = "x".join(map(str, found["size"])), f", {found['steps']} steps each" if found["steps"] else ""
    out().print(f"[bold green]✓[/] {target}: {count} samples of {shape}{each}")
