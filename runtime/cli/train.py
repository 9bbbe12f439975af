"""`planform train`: runs a spec's training program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, Environment, Set, Size, SpecName, With, label, load_spec

EPILOG = "Example: planform train gemma2@small --out runs/small --mesh data=2 --files my_texts/"


def add(app: typer.Typer) -> None:
    app.command(epilog=EPILOG)(train)


def train(
    spec: SpecName,
    size: Size = None,
    overrides: Set = None,
    folder: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Everything goes there. [default: runs/NAME]")
    ] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option("--files", metavar="PATH", help="Data to train on. [default: the standard library's source]"),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="PATH", help="`bytes` or a tokenizer.json.")
    ] = None,
    uses: With = None,
    environment: Environment = None,
    actors: Annotated[int | None, typer.Option("--actors", min=0, help="How many play in an environment.")] = None,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="They play on a Ray cluster: HOST:PORT, `auto` or `local`."),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Steps in all.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Examples in a step, over all replicas.")] = None,
    length: Annotated[int | None, typer.Option("--length", min=2, help="Tokens in an example.")] = None,
    accumulate: Annotated[int | None, typer.Option("--accumulate", min=1, help="Parts a batch is taken in.")] = None,
    mesh: Annotated[
        str | None, typer.Option("--mesh", metavar="AXIS=N,..", help="Devices: data=2, or data=2,fsdp=2.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of first values, order of data and draws.")] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="Compute in float32, bfloat16 or float64.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on from the folder's last checkpoint, or refuse to.")
    ] = True,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Start so many processes on this machine.")
    ] = None,
    process: Annotated[int | None, typer.Option("--process", min=0, help="Index of this one, on several.")] = None,
    coordinator: Annotated[
        str | None, typer.Option("--coordinator", metavar="HOST:PORT", help="Where process 0 listens.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model; run again to go on. Ctrl-C saves and stops."""
    loaded_overrides = [*(overrides or ())]
    loaded = load_spec(spec, size, loaded_overrides)
    target = folder or Path("runs") / label(loaded).replace("@", "-")

    from ..distributed import begin

    code = begin(processes, process, coordinator)
    if code is not None:
        raise typer.Exit(code)

    from planform.compiler.check import check
    from planform.spec import SpecError

    from ..mesh import parse_mesh
    from ..train import train as run
    from ..uses import parse_with
    from .console import err, print_json

    axes = parse_mesh(mesh) if mesh else None
    found = check(loaded)
    if any(d.severity == "error" for d in found):
        raise SpecError(found)  # everything at once, before anything is read or written
    result = run(
        loaded,
        target,
        overrides=loaded_overrides,
        files=list(files) if files else None,
        tokenizer=tokenizer,
        steps=steps,
        batch=batch,
        length=length,
        accumulate=accumulate,
        seed=seed,
        mesh=axes,
        precision=precision,
        resume=resume,
        quiet=quiet,
        uses=parse_with(uses or ()),
        environment=environment,
        actors=actors,
        ray=ray,
    )
    if as_json:
        print_json({"folder": str(target), "step": result.step, "stopped_by_signal": result.signal,
                    "tokens_per_second": result.tokens_per_second, **result.values})  # fmt: skip
    elif not quiet:
        console = err()
        done = "stopped" if result.signal else "done"
        speed = f"{result.tokens_per_second:,.0f} {result.unit}/s"
        console.print(f"{done} at step {result.step}, {speed}; saved in {target}")
        if result.signal:
            console.print("[dim]the same command goes on from here[/]")
    raise typer.Exit(result.exit_code)
