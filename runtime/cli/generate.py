"""`planform generate`: text from a trained or exported model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EPILOG = 'Example: planform generate runs/small/onnx --prompt "def main(" --tokens 200'


def add(app: typer.Typer) -> None:
    app.command(epilog=EPILOG)(generate)


def generate(
    folder: Annotated[Path, typer.Argument(metavar="RUN|FOLDER", help="A training run, or an exported folder.")],
    prompt: Annotated[str, typer.Option("--prompt", help="The text to go on from.")],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="How many to write, at most.")] = 128,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, help="Draw from so many likeliest tokens.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    graph: Annotated[str | None, typer.Option("--graph", help="Of a run whose spec has several.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the text that was written.")] = False,
) -> None:
    """Write text: a run with XLA, an exported folder with plain onnxruntime."""
    import sys
    import time

    from ..generate import generate as stream
    from ..generate import open_decoder, prompt_tokens
    from .console import err

    decoder, tokenizer, engine = open_decoder(folder, graph)
    ids = prompt_tokens(prompt, tokenizer)
    if not quiet:
        sys.stdout.write(prompt)
        sys.stdout.flush()
    pieces = tokenizer.stream()
    for token in ids:
        pieces.write(int(token))  # so that what follows decodes as it would behind the prompt
    first = last = 0.0
    written = 0
    for token in stream(decoder, ids, tokens, temperature, top_k, seed, tokenizer.eos):
        last = time.perf_counter()
        first = first or last
        written += 1
        sys.stdout.write(pieces.write(token))
        sys.stdout.flush()
    sys.stdout.write(pieces.flush() + "\n")
    if not quiet and written > 1:
        err().print(f"[dim]{written} tokens by {engine}, {(written - 1) / max(last - first, 1e-9):,.0f} tokens/s[/]")
