"""`planform functa`: signals as latents of a field, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, Set

EPILOG_ENCODE = "Example: planform functa encode runs/spatial --files photos/ --out data/photos.functaset"
EPILOG_DECODE = "Example: planform functa decode data/photos.functaset --out pictures --size 32 --size 1024"


def add(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
    group.command(epilog=EPILOG_ENCODE)(encode)
    group.command(epilog=EPILOG_DECODE)(decode)
    app.add_typer(group, name="functa", help="Signals as latents of a trained field: encode, decode.")


def encode(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run of functa, or another field with an inner loop.")],
    folder: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the functaset goes.")],
    files: Annotated[
        Path | None, typer.Option("--files", metavar="PATH", help="Signals. [default: what the run was trained on]")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Of the inner loop. [default: as it was trained]")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Signals fitted at once.")] = 64,
    shard: Annotated[int, typer.Option("--shard", min=1, help="Latents in a file.")] = 4096,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many signals of each split.")] = None,
    step: Annotated[int | None, typer.Option("--step", min=0, help="Of the checkpoint. [default: the newest]")] = None,
    overrides: Set = None,
    as_json: AsJson = False,
) -> None:
    """Fit the latent of every signal and write a functaset; stopped, the same command goes on."""
    from ..functa.encode import encode as run_
    from .console import err, out, print_json

    def tell(done: int, total: int, speed: float) -> None:
        end = "\n" if done == total else "\r"
        if not as_json and err().is_terminal:
            err().print(f"  [dim]{done:,} of {total:,}, {speed:,.0f} a second[/]", end=end)

    found = run_(run, folder, files=files, steps=steps, step=step, batch=batch, shard=shard, limit=limit,
                 overrides=tuple(overrides or ()), tell=tell)  # fmt: skip
    if as_json:
        print_json({"folder": str(folder), **found.told})
        return
    shape = " x ".join(map(str, found.shape))
    out().print(f"[bold green]✓[/] {folder}: latents of {shape}, {found.told['fitting']['steps']} steps each")
    for split, told in found.told["splits"].items():
        means = ", ".join(f"{n} {v:.4g}" for n, v in told["means"].items())
        out().print(f"  {split:<8} {told['rows']:>9,} signals [dim]{means}[/]")


def decode(
    folder: Annotated[Path, typer.Argument(metavar="FUNCTASET", help="The folder that `encode` made.")],
    target: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the pictures go.")],
    sizes: Annotated[
        list[str] | None,
        typer.Option("--size", metavar="N|HxW", help="A resolution; several may be given. [default: the signals' own]"),
    ] = None,
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="train or heldout.")] = "heldout",
    rows: Annotated[str, typer.Option("--rows", metavar="FIRST:END", help="Which of its latents.")] = "0:16",
    files: Annotated[
        Path | None, typer.Option("--files", metavar="PATH", help="Where the signals are now, for the PSNR.")
    ] = None,
    tile: Annotated[int, typer.Option("--tile", min=1, help="Points in memory at once.")] = 2048,
    npy: Annotated[bool, typer.Option("--npy", help="Arrays instead of pictures, for sound and volumes.")] = False,
    as_json: AsJson = False,
) -> None:
    """Render latents at any resolution as PNG, with their PSNR; large images are made tile by tile."""
    from ..functa.decode import decode as run_
    from ..functa.functaset import SPLITS, Functaset
    from .console import err, out, print_json
    from .options import one_of, parse_shape, parse_slice

    axes = len(Functaset.open(folder).told["signals"]["shape"])
    found = run_(
        folder, target, split=one_of("--split", split, SPLITS), rows=parse_slice("--rows", rows),
        sizes=[parse_shape("--size", s, axes) for s in sizes or ()], files=files, tile=tile, npy=npy,
        report=lambda text: err().print(f"  [dim]{text}[/]", soft_wrap=True),
    )  # fmt: skip
    if as_json:
        print_json({"folder": str(target), **found})
        return
    note = f", PSNR {found['psnr']['mean']:.2f} dB" if "psnr" in found else ""
    count = found["rows"][1] - found["rows"][0]
    out().print(f"[bold green]✓[/] {target}: {count} {split} signals at {', '.join(found['sizes'])}{note}")
