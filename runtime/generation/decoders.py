"""A batch of streams of a language model: with XLA from a training run, with plain onnxruntime from an exported folder.

Both give the logits of each row's last entry; what is made of them is the same code, so that equal logits write equal
text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..artefact import CONTRACT
from ..errors import UserError

CHUNK = 256
"""Entries of a prompt that are taken at once."""


class Decoder(Protocol):
    """vocab    how many ids the model knows, which is the length of its logits
    engine   what computes
    longest  the most entries that a stream may have, or None
    endless  whether a stream may go on without end, in the memory that it has
    """

    vocab: int
    engine: str
    longest: int | None
    endless: bool

    def start(self, batch: int, capacity: int) -> None:
        """Begins `batch` new streams with room for so many entries each, which says nothing where they are endless.
        Raises: UserError where that is too much."""

    def feed(self, tokens: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Takes the next entries of every stream.

        tokens  int [batch, time], rows padded at their end
        count   int [batch], how many of a row are valid: at least one in a stream's first, none where it has ended
        Returns logits float32 [batch, vocab] after each row's last valid entry; of a row without one, anything.
        """


class OnnxDecoder:
    """An exported folder, in onnxruntime and nothing else. Raises: UserError for a folder that can't be used so."""

    engine = "onnxruntime"

    def __init__(self, folder: Path) -> None:
        from planform.backends import onnx

        try:
            self._session = onnx.Session(folder)
        except Exception as error:  # the runtime raises its own kinds
            raise UserError(f"{folder} can't be run: {_first_line(error)}", help="export it again") from error
        names = list(self._session.inputs)
        if len(names) != 1 or len(self._session.outputs) != 1:
            raise UserError(f"the model in {folder} is no language model: it takes {', '.join(names)}")
        (logits,) = json.loads((folder / CONTRACT).read_text())["outputs"]
        self.vocab = int(logits["shape"][-1])
        self.longest: int | None = self._session.max_positions
        self.endless = self.longest is None

    def start(self, batch: int, capacity: int) -> None:
        if self.longest is not None and capacity > self.longest:
            raise UserError(
                f"prompt and answer may take {capacity} tokens, and this model was exported for {self.longest}",
                help="ask for fewer --tokens, shorten the prompt, or export with more --positions",
            )
        self._session.reset(batch, capacity)

    def feed(self, tokens: np.ndarray, count: np.ndarray) -> np.ndarray:
        logits: np.ndarray = self._session.prefill(tokens.astype(np.int32), count)
        return np.array(logits[:, -1], np.float32)


class XlaDecoder:
    """A graph with its parameters, compiled for what device there is. Raises: UserError for no language model."""

    engine = "XLA"
    longest: int | None = None

    def __init__(self, graph: Any, parameters: Mapping[str, np.ndarray]) -> None:
        import jax

        from planform.backends import xla
        from planform.compiler.analyses.cost import grows
        from planform.compiler.passes.last import last_only
        from planform.compiler.passes.pipeline import optimise
        from planform.compiler.size import evaluate

        step = last_only(optimise(graph, "xla", "step"))
        inputs = [v.name for v in step.inputs if getattr(v, "default", 0) is None]
        outputs = [k for k in step.outputs if k not in {s.path for s in step.states}]
        if len(inputs) != 1 or len(outputs) != 1:
            raise UserError(f"`{graph.name}` is no language model: it takes {', '.join(inputs)}")
        self._graph, self._input, self._output = step, inputs[0], outputs[0]
        self.endless = not grows(step)
        self.vocab = evaluate(step.outputs[outputs[0]].type.sizes[-1], {})
        self._policy = xla.Policy()
        self._parameters = xla.from_logical(lambda n: parameters[n], step, self._policy)
        self._run = jax.jit(xla.lower(step, self._policy), donate_argnums=2)
        self._states: Any = None

    def start(self, batch: int, capacity: int) -> None:
        from planform.backends import xla

        room = -(-capacity // CHUNK) * CHUNK + CHUNK  # few sizes, so that little is compiled; chunks are padded
        self._states = xla.initial_states(self._graph, self._policy, {"batch": batch, "capacity": room})

    def feed(self, tokens: np.ndarray, count: np.ndarray) -> np.ndarray:
        batch, time = tokens.shape
        out = np.zeros((batch, self.vocab), np.float32)
        for start in range(0, time, CHUNK):
            part = np.clip(count - start, 0, CHUNK).astype(np.int32)
            width = 1 if time == 1 else CHUNK
            padded = np.zeros((batch, width), np.int32)
            chunk = tokens[:, start : start + width]
            padded[:, : chunk.shape[1]] = chunk
            found = self._run(self._parameters, {self._input: padded, "count": part}, self._states)
            self._states = {k: found[k] for k in self._states}
            out = np.where((part > 0)[:, None], np.asarray(found[self._output], np.float32)[:, -1], out)
        return out


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
