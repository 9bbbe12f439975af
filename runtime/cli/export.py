"""`planform export`: the trained model as an artefact for plain onnxruntime."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import AsJson, Fix, GraphName, Set, parse_fixed

EPILOG = "Example: planform export runs/small --to onnx --out runs/small/onnx"


class Target(StrEnum):
    onnx = "onnx"
    genai = "genai"
    huggingface = "huggingface"
    deepmind = "deepmind"


class Weights(StrEnum):
    int4 = "int4"
    w8 = "w8"
    int8 = "int8"


class Block(StrEnum):
    b32 = "32"
    b64 = "64"
    b128 = "128"


class Cache(StrEnum):
    int8 = "int8"


def add(app: typer.Typer) -> None:
    app.command(epilog=EPILOG)(export)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a training run.")],
    to: Annotated[
        Target, typer.Option("--to", help="For onnxruntime; for it and onnxruntime-genai; or a checkpoint.")
    ] = Target.onnx,
    folder: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Where to. [default: RUN/onnx, RUN/huggingface ..]")
    ] = None,
    graph: GraphName = None,
    fix: Fix = None,
    overrides: Set = None,
    positions: Annotated[
        int, typer.Option("--positions", min=8, help="The longest stream it is made for, if its state grows.")
    ] = 8192,
    quantize: Annotated[
        Weights | None, typer.Option("--quantize", help="Weights of 4 or 8 bits; int8: products in 8 bits as well.")
    ] = None,
    block: Annotated[
        Block, typer.Option("--block", help="Weights that share a scale, for int4 and w8. [default: 128]")
    ] = Block.b128,
    cache: Annotated[
        Cache | None, typer.Option("--cache", help="Keep key and value caches in 8 bits: for long streams.")
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option("--calibrate", metavar="TEXT", help="Text to calibrate on. [default: the run's data]"),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option("--budget", min=0, help="Largest divergence allowed, in nats; takes more bits where needed."),
    ] = None,
    step: Annotated[int | None, typer.Option("--step", min=0, help="Of the checkpoint. [default: the newest]")] = None,
    as_json: AsJson = False,
) -> None:
    """Export a trained model: the model file, its weights, a contract and a fixture to check it by."""
    from ..errors import UserError
    from ..exchange import FORMATS
    from ..exporting import export_checkpoint, export_run
    from ..quantize import Wish
    from .console import err, out, print_json, size

    if to.value in FORMATS:
        target = export_checkpoint(run, folder or run / to.value, to.value, step, tuple(overrides or ()))
        if as_json:
            print_json({"folder": str(target)})
        else:
            out().print(f"[bold green]✓[/] {target}: a checkpoint in {FORMATS[to.value].layout}")
        return
    wish = None
    if quantize or cache:
        wish = Wish(quantize.value if quantize else None, int(block.value), cache is not None, budget)
    elif budget is not None or calibrate is not None:
        raise UserError("--budget and --calibrate are for a quantised model", help="--quantize int4, w8 or int8")
    found = export_run(
        run, folder or run / to.value, graph=graph, positions=positions, step=step, overrides=tuple(overrides or ()),
        genai=to is Target.genai, wish=wish, calibrate=calibrate, fixed=parse_fixed(fix),
        report=(lambda _: None) if as_json else lambda text: err().print(f"  [dim]{text}[/]", soft_wrap=True),
    )  # fmt: skip
    if as_json:
        print_json(found)
        return
    console = out()
    form = "one file for prompts and for token by token" if found["form"] == "step" else "for whole sequences"
    console.print(f"[bold green]✓[/] {found['folder']}: {form}, {size(found['bytes'])}")
    if found["why"]:
        console.print(f"  [dim]{found['why']}[/]", soft_wrap=True)
    if found["quantization"]:
        _print_quantization(console, found["quantization"])
    for name, n in found["files"].items():
        console.print(f"  {name:<18} [dim]{size(n)}[/]")


def _print_quantization(console: Any, told: dict[str, Any]) -> None:
    weights = ", ".join(f"{n:,} weights in {kind}" for kind, n in told["weights"].items())
    cache = f"{', ' if weights else ''}caches in {told['cache']}" if told["cache"] else ""
    d = told["divergence"]
    unit = " nats (KL)" if d["metric"] == "kl" else f" ({d['metric']})"
    console.print(f"  {weights}{cache}", soft_wrap=True)
    console.print(f"  divergence {d['value']:.2g}{unit} from the float32 model, on {d['entries']}", soft_wrap=True)
