"""A folder as something that writes: what computes, how text becomes ids, and what ends it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..artefact import CONTRACT, is_artefact
from ..companions import FOLDER, GENERATION, generation_ids
from ..data.files import read_mapping
from ..data.tokenizers import Tokenizer, load_tokenizer
from ..errors import UserError
from .chat import ChatTemplate, Message, load_template
from .decoders import Decoder, OnnxDecoder, XlaDecoder

_MARK = re.compile(r"\s*(<[^\s<>]+>|\[[^\s\[\]]+\])")
"""How a token that ends a turn is written: `<end_of_turn>`, `<|im_end|>`, `</s>`, `[/INST]`."""


@dataclass(frozen=True)
class Model:
    """decoder    what computes
    tokenizer  text to ids and back
    template   of conversations, or None
    ends       ids that end a text
    """

    decoder: Decoder
    tokenizer: Tokenizer
    template: ChatTemplate | None = None
    ends: frozenset[int] = frozenset()

    def prompt(self, text: str) -> np.ndarray:
        """The ids of a text to go on from, integer [time], behind bos where the tokenizer has one."""
        return self._with_bos(np.asarray(self.tokenizer.encode(text), np.int64))

    def conversation(self, messages: Sequence[Message]) -> np.ndarray:
        """The ids of a conversation up to the model's next turn, integer [time]. bos stands once, whether the template
        writes it or not. Raises: UserError without a template, or where it refuses the conversation."""
        if self.template is None:
            raise UserError(
                "this model has no chat template",
                help="put a chat_template.jinja beside its tokenizer, or write without --chat",
            )
        return self._with_bos(self.tokenizer.encode_marked(self.template.render(messages)))

    def turn_ends(self) -> frozenset[int]:
        """The ids that end the model's turn: those that end a text, and what its template puts behind an answer."""
        found = _MARK.match(self.template.turn_end()) if self.template else None
        token = self.tokenizer.token(found[1]) if found else None
        return self.ends if token is None else self.ends | {token}

    def _with_bos(self, ids: np.ndarray) -> np.ndarray:
        bos = self.tokenizer.bos
        return ids if bos is None or (len(ids) and ids[0] == bos) else np.concatenate([[bos], ids])


def open_model(folder: str | Path, graph: str | None = None, overrides: Sequence[str] = ()) -> Model:
    """A training run, an imported checkpoint or an exported folder, ready to write.

    graph      of a run whose spec has several
    overrides  of a run's spec, as far as no parameter changes: `window=1024`
    Raises: UserError for a folder that is none of these or has no tokenizer; SpecError.
    """
    folder = Path(folder)
    words = folder if is_artefact(folder) else folder / FOLDER
    tokenizer = load_tokenizer(_tokenizer_file(folder, words))
    template = load_template(words, tokenizer.specials)
    if words != folder:
        told = generation_ids(folder)
    else:
        told = read_mapping(folder / GENERATION) if (folder / GENERATION).is_file() else {}
    ends = _ids(told.get("eos_token_id"), folder) | ({tokenizer.eos} if tokenizer.eos is not None else set())
    return Model(open_decoder(folder, graph, overrides), tokenizer, template, frozenset(ends))


def open_decoder(folder: str | Path, graph: str | None = None, overrides: Sequence[str] = ()) -> Decoder:
    """Only what computes, for whoever has ids already. Arguments and faults as for `open_model`."""
    folder = Path(folder)
    if is_artefact(folder):
        if overrides:
            raise UserError(
                f"{folder} is an exported model, in which nothing can be set",
                help="export the run again with --set, or generate from the run",
            )
        return OnnxDecoder(folder)
    from planform.compiler.elaborate import elaborate

    from ..run import parameters_of_run, spec_of_run

    return XlaDecoder(elaborate(spec_of_run(folder, overrides), graph), parameters_of_run(folder))


def _tokenizer_file(folder: Path, words: Path) -> Path:
    if is_artefact(folder):
        name = json.loads((folder / CONTRACT).read_text()).get("tokenizer")
        if name:
            return folder / str(name)
        raise UserError(f"{folder} has no tokenizer", help="put one beside the run's weights, and export it again")
    from ..run import read_run

    read_run(folder)  # raises for a folder that is no run at all
    if not any((words / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise UserError(f"{folder} has no tokenizer", help=f"put its tokenizer.json or tokenizer.model into {words}")
    return words


def _ids(told: Any, folder: Path) -> set[int]:
    """`eos_token_id` as it stands in configurations: an id, several, or none."""
    found = told if isinstance(told, list) else [] if told is None else [told]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in found):
        raise UserError(f"the eos_token_id of {folder} is {told!r}", help="it should be an id or a list of ids")
    return set(found)
