"""Writing text, token by token: with XLA from a training run, with plain onnxruntime from an exported folder.

Both give the logits of the last entry; what is made of them is the same code, so that equal logits write equal text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .artefact import CONTRACT, is_artefact
from .data.tokenizers import Tokenizer, load_tokenizer
from .errors import UserError

CHUNK = 256
"""Entries of a prompt that are taken at once."""


class Decoder(Protocol):
    """One stream of a model."""

    def start(self, capacity: int) -> None:
        """Begins a new stream with room for so many entries."""

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        """Takes the next entries [time]; returns the logits [vocab] after the last of them."""


class OnnxDecoder:
    """An exported folder, in onnxruntime and nothing else. Raises: UserError for a folder that can't be used so."""

    def __init__(self, folder: Path) -> None:
        from planform.backends import onnx

        try:
            self._session = onnx.Session(folder)
        except Exception as error:  # the runtime raises its own kinds
            raise UserError(f"{folder} can't be run: {error}", help="export it again") from error
        names = [n for n in self._session.inputs if n != "count"]
        if len(names) != 1 or len(self._session.outputs) != 1:
            raise UserError(f"the model in {folder} is no language model: it takes {', '.join(names)}")

    def start(self, capacity: int) -> None:
        # The padding of a chunk needs room as well.
        try:
            self._session.reset(1, capacity)
        except ValueError as error:
            raise UserError(str(error), help="ask for fewer tokens, or export with more --positions") from error

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        logits: np.ndarray = self._session.prefill(tokens[None].astype(np.int32), chunk=CHUNK)
        return np.array(logits[0, -1])


class XlaDecoder:
    """A graph with its parameters, compiled for what device there is."""

    def __init__(self, graph: Any, parameters: Mapping[str, np.ndarray]) -> None:
        import jax

        from planform.backends import xla
        from planform.compiler.passes.last import last_only
        from planform.compiler.passes.pipeline import optimise

        step = last_only(optimise(graph, "xla", "step"))
        inputs = [v.name for v in step.inputs if getattr(v, "default", 0) is None]
        outputs = [k for k in step.outputs if k not in {s.path for s in step.states}]
        if len(inputs) != 1 or len(outputs) != 1:
            raise UserError(f"`{graph.name}` is no language model: it takes {', '.join(inputs)}")
        self._graph, self._input, self._output = step, inputs[0], outputs[0]
        self._policy = xla.Policy(platform=jax.default_backend())
        self._parameters = xla.from_logical(lambda n: parameters[n], step, self._policy)
        self._run = jax.jit(xla.lower(step, self._policy), donate_argnums=2)
        self._states: Any = None

    def start(self, capacity: int) -> None:
        from planform.backends import xla

        room = -(-capacity // CHUNK) * CHUNK + CHUNK  # few sizes, so that little is compiled
        self._states = xla.initial_states(self._graph, self._policy, {"batch": 1, "capacity": room})

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        logits = None
        for start in range(0, len(tokens), CHUNK):
            part = tokens[start : start + CHUNK]
            width = 1 if len(part) == 1 else CHUNK
            padded = np.zeros((1, width), np.int32)
            padded[0, : len(part)] = part
            count = np.array([len(part)], np.int32)
            found = self._run(self._parameters, {self._input: padded, "count": count}, self._states)
            self._states = {k: found[k] for k in self._states}
            logits = found[self._output]
        assert logits is not None
        return np.asarray(logits[0, -1])


def sample(logits: np.ndarray, rng: np.random.Generator, temperature: float, top_k: int | None) -> int:
    """One token from logits [vocab]: the likeliest at temperature 0, else from softmax(logits / temperature) over the
    top_k likeliest (all, without one)."""
    z = np.asarray(logits, np.float64)
    if temperature == 0:
        return int(z.argmax())
    if top_k is not None and top_k < len(z):
        z = np.where(z >= np.partition(z, -top_k)[-top_k], z, -np.inf)
    p = np.exp((z - z.max()) / temperature)
    return int(rng.choice(len(p), p=p / p.sum()))


def generate(
    decoder: Decoder,
    prompt: np.ndarray,
    tokens: int,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
    stop: int | None = None,
) -> Iterator[int]:
    """At most `tokens` ids that follow the prompt [time], each as soon as it is there; ends before the id `stop`.

    Raises: UserError for a prompt without a token.
    """
    if not len(prompt):
        raise UserError("the prompt has no token", help="give some text to go on from")
    rng = np.random.default_rng(seed)
    decoder.start(len(prompt) + tokens)
    logits = decoder.feed(prompt)
    for i in range(tokens):
        token = sample(logits, rng, temperature, top_k)
        if token == stop:
            return
        yield token
        if i + 1 < tokens:
            logits = decoder.feed(np.array([token]))


def prompt_tokens(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """The ids of a prompt, behind the tokenizer's bos where it has one."""
    ids = np.asarray(tokenizer.encode(text), np.int64)
    return ids if tokenizer.bos is None else np.concatenate([[tokenizer.bos], ids])


def open_decoder(folder: str | Path, graph: str | None = None) -> tuple[Decoder, Tokenizer, str]:
    """(decoder, tokenizer, what runs it) for a training run or an exported folder.

    Raises: UserError for a folder that is neither, or has no tokenizer.
    """
    folder = Path(folder)
    if is_artefact(folder):
        name = json.loads((folder / CONTRACT).read_text()).get("tokenizer")
        if not name:
            raise UserError(f"{folder} has no tokenizer", help="export with --tokenizer, or generate from the run")
        return OnnxDecoder(folder), load_tokenizer(folder / name), "onnxruntime"
    from planform.compiler.elaborate import elaborate

    from .run import parameters_of_run, spec_of_run

    spec = spec_of_run(folder)
    decoder = XlaDecoder(elaborate(spec, graph), parameters_of_run(folder))
    return decoder, load_tokenizer(folder / "tokenizer"), "XLA"
