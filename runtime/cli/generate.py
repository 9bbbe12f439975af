"""`planform generate`: text from a trained, imported or exported model."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import AsJson, GraphName, Set

if TYPE_CHECKING:
    import numpy as np

    from ..generation.chat import Message
    from ..generation.model import Model
    from ..generation.sampling import Sampling
    from ..generation.writing import Piece

EPILOG = 'Example: planform generate runs/small/onnx --prompt "def main(" --tokens 200'


def add(app: typer.Typer) -> None:
    app.command(epilog=EPILOG)(generate)


def generate(
    folder: Annotated[Path, typer.Argument(metavar="RUN|FOLDER", help="A training run, or an exported folder.")],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="TEXT", help="To go on from. Several are one batch.")
    ] = None,
    prompt_file: Annotated[
        list[str] | None, typer.Option("--prompt-file", metavar="FILE", help="The same from a file, - for the input.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="A prompt is what a user says. Without one, talk on the terminal.")
    ] = False,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="What a conversation begins with.")
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", min=0, help="How many to write, at most. 0: without end, if the model can.")
    ] = 128,
    temperature: Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Draw from so many likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Draw from the likeliest tokens that are so probable together.")
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", help="Above 1 against what was said before.")
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Equal seeds draw equally.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="Ends a text before it. May be repeated.")
    ] = None,
    graph: GraphName = None,
    overrides: Set = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the text that was written.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write text: a run with XLA, an exported folder with plain onnxruntime.

    One text is printed as it comes, several as each is done.
    """
    from ..errors import UserError
    from ..generation.model import open_model
    from ..generation.sampling import Sampling
    from ..generation.stopping import StopStrings
    from ..generation.writing import write
    from .console import err

    how = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    stops = tuple(_text(s) for s in stop or ())
    StopStrings(stops)  # mistakes are told before anything is loaded
    texts = [*map(_text, prompt or ()), *(_read(file) for file in prompt_file or ())]
    if system is not None and not chat:
        raise UserError("--system is part of a conversation", help="give --chat as well")
    talk = chat and not texts and _terminal()
    if not texts and not talk:
        raise UserError("there is no prompt", help="give --prompt TEXT or --prompt-file FILE")
    model = open_model(folder, graph, tuple(overrides or ()))
    lead = [] if system is None else [{"role": "system", "content": _text(system)}]
    most = tokens or None
    if talk:
        _talk(model, lead, most, how, stops)
        return
    made = _Made(model.decoder.engine, keep=as_json or len(texts) > 1)
    if chat:
        prompts = [model.conversation([*lead, {"role": "user", "content": text}]) for text in texts]
        pieces = made.watch(write(model, prompts, most, how, stops, model.turn_ends()))
    else:
        prompts = [model.prompt(text) for text in texts]
        pieces = made.watch(write(model, prompts, most, how, stops))
    if as_json:
        _print_json(made, pieces, texts, prompts)
    elif len(texts) == 1:
        _say("" if quiet or chat else texts[0])
        for piece in pieces:
            _say(piece.text)
        _say("\n")
    else:
        _print_each(made, pieces, texts, quiet, chat)
    if not quiet and not as_json and (rate := made.rate()):
        err().print(f"[dim]{made.written} tokens by {made.engine}, {rate:,.0f} tokens/s[/]")


class _Made:
    """What is known of some texts while they are written; the texts themselves where they are to be kept."""

    def __init__(self, engine: str, keep: bool) -> None:
        self.engine, self._keep = engine, keep
        self.texts: dict[int, str] = {}
        self.ids: dict[int, list[int]] = {}
        self.written = 0
        self._rows: set[int] = set()  # that have a token
        self._first = self._last = 0.0

    def watch(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            if self._keep:
                self.texts[piece.row] = self.texts.get(piece.row, "") + piece.text
                self.ids.setdefault(piece.row, [])
            if piece.token is not None:
                self._rows.add(piece.row)
                if self._keep:
                    self.ids[piece.row].append(piece.token)
                self.written += 1
                self._last = time.perf_counter()
                self._first = self._first or self._last
            yield piece

    def rate(self) -> float | None:
        """Tokens a second after the first of every text, which the prompts are part of."""
        rest = self.written - len(self._rows)
        return rest / (self._last - self._first) if rest > 0 and self._last > self._first else None


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _print_each(made: _Made, pieces: Iterable[Piece], texts: Sequence[str], quiet: bool, chat: bool) -> None:
    """Each text as soon as it is done."""
    for piece in pieces:
        if piece.ended:
            head = "" if quiet else f"--- {piece.row + 1} of {len(texts)} ---\n" + ("" if chat else texts[piece.row])
            _say(head + made.texts[piece.row] + "\n")


def _print_json(made: _Made, pieces: Iterable[Piece], texts: Sequence[str], prompts: Sequence[np.ndarray]) -> None:
    from .console import print_json

    ended = {piece.row: piece.ended for piece in pieces}
    rows = [
        {"prompt": text, "prompt_tokens": len(ids), "text": made.texts[i], "tokens": len(made.ids[i]),
         "ids": made.ids[i], "ended": ended[i]}
        for i, (text, ids) in enumerate(zip(texts, prompts, strict=True))
    ]  # fmt: skip
    rate = made.rate()
    print_json({"engine": made.engine, "tokens_per_second": rate and round(rate, 1), "texts": rows})


def _talk(model: Model, lead: Sequence[Message], tokens: int | None, how: Sampling, stops: Sequence[str]) -> None:
    """A conversation on the terminal, until its input ends. Ctrl-C ends an answer."""
    from ..errors import UserError
    from ..generation.resuming import Resuming
    from ..generation.writing import write
    from .console import err, print_error

    model = replace(model, decoder=Resuming(model.decoder))
    model.conversation([*lead, {"role": "user", "content": "-"}])  # mistakes are told before anything is said
    err().print("[dim]Ctrl-D leaves, Ctrl-C ends an answer[/]")
    messages = list(lead)
    ends = model.turn_ends()
    while True:
        try:
            words = input("> ")
        except EOFError:
            _say("\n")
            return
        if not words.strip():
            continue
        asked = [*messages, {"role": "user", "content": words}]
        answer = ""
        try:
            for piece in write(model, [model.conversation(asked)], tokens, how, stops, ends):
                answer += piece.text
                _say(piece.text)
        except KeyboardInterrupt:
            pass
        except UserError as error:  # the conversation became too long, for instance
            print_error(error.message, error.help)
            continue
        _say("\n")
        messages = [*asked, {"role": "assistant", "content": answer}]


def _terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _text(argument: str) -> str:
    """An argument of the command line, in which bytes that are no UTF-8 are U+FFFD."""
    return argument.encode(errors="surrogateescape").decode(errors="replace")


def _read(file: str) -> str:
    """The whole text of a prompt's file. Raises: UserError."""
    from ..errors import UserError

    if file == "-":
        return sys.stdin.read()
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"can't read {file}: {error.strerror}", help="give a text file, or - for the input") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} isn't UTF-8 text", help="give a text file, or - for the input") from error
