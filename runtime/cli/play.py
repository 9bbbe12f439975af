"""`planform play`: what a trained agent does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, Environment, parse_shape

EPILOG = "Example: planform play runs/d4pg --out pictures --episodes 10"


def add(app: typer.Typer) -> None:
    app.command(epilog=EPILOG)(play)


def play(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that trained an agent.")],
    folder: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Where a film (GIF) and the returns go.")
    ] = None,
    episodes: Annotated[int, typer.Option("--episodes", min=1, help="How many.")] = 5,
    environment: Environment = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the episodes.")] = 0,
    step: Annotated[int | None, typer.Option("--step", min=0, help="Of the checkpoint. [default: the newest]")] = None,
    size: Annotated[str, typer.Option("--size", metavar="HxW", help="Of the film.")] = "240x320",
    as_json: AsJson = False,
) -> None:
    """Let a trained agent play, without noise: returns, and a film of the first episode."""
    from ..agents.play import play as run_
    from .console import out, print_json

    height, width = parse_shape("--size", size, 2)
    found = run_(run, folder, episodes=episodes, environment=environment, seed=seed, step=step, size=(height, width))
    if as_json:
        print_json(found)
        return
    each = ", ".join(f"{r:.0f}" for r in found["returns"])
    out().print(f"{found['environment']}: returns {each}; mean {found['mean']:.1f}")
    if folder:
        out().print(f"[bold green]✓[/] {folder / 'episode.gif'}")
