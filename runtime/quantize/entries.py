"""Entries to calibrate on and entries to measure on: from the run's data, from a text, or made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from planform.compiler.ir import Graph, Input

from ..companions import FOLDER
from ..errors import UserError
from ..probe import probe_inputs
from ..run import read_run, spec_of_run

Chunk = dict[str, np.ndarray]
"""Inputs by name, [batch, time, ..], all of them valid."""

CALIBRATION, ROWS = 16384, 8
"""Entries to calibrate on, and how many streams are run side by side."""

HELD_OUT = 16
"""Streams to measure on."""

PICTURES, PICTURES_HELD_OUT = 512, 256
"""For networks of convolutions: images whose values say what ranges 8 bits are spread over, and those to measure on."""

LENGTH = 256
"""Entries of a stream, where the data doesn't say."""


@dataclass(frozen=True)
class Entries:
    """calibration: chunks of new streams; held_out: one chunk; source: where they are from, in words."""

    calibration: Sequence[Chunk]
    held_out: Chunk
    source: str


def of_run(run: Path, graph: Graph, text: Path | None) -> Entries:
    """Entries for a graph of a run: from `text` where one is given, else from the run's data, else made up.

    Raises: UserError where there is too little text.
    """
    if text is not None:
        return _of_text(run, graph, text)
    if "data" in read_run(run):
        return _of_data(run, graph)
    return made_up(graph)


def made_up(graph: Graph) -> Entries:
    """Random entries: better than none, but not what the model will see."""
    count = CALIBRATION // (8 * ROWS * LENGTH)  # more of what is made up anyway would teach nothing
    chunks = [probe_inputs(graph, ROWS, LENGTH, 1 + i, documents=False) for i in range(count)]
    held_out = probe_inputs(graph, HELD_OUT, LENGTH, 0, documents=False)
    return Entries(chunks, held_out, "random inputs: the error on real ones may be larger (--calibrate TEXT.txt)")


def _of_text(run: Path, graph: Graph, text: Path) -> Entries:
    from ..data.tokenizers import load_tokenizer

    names = [v.name for v in graph.of_kind(Input) if v.default is None]
    if len(names) != 1:
        raise UserError(f"--calibrate gives text, and `{graph.name}` takes {', '.join(names)}")
    try:
        content = text.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"can't read {text}: {error.strerror or error}", help="give a text file") from error
    if not (run / FOLDER).is_dir():
        raise UserError(f"{run} has no tokenizer to read {text} with", help="leave --calibrate out")
    ids = np.asarray(load_tokenizer(run / FOLDER).encode(content), np.int32)
    length = min(LENGTH, len(ids) // 4)
    if length < 8:
        raise UserError(f"{text} has only {len(ids)} tokens", help="give a longer text: some ten thousand words")
    rows = ids[: len(ids) // length * length].reshape(-1, length)
    # Whole rows from the end are held out: a quarter, if that is fewer than are wanted.
    held = min(HELD_OUT, max(1, len(rows) // 4))
    return Entries(_chunks(names[0], rows[:-held]), {names[0]: rows[-held:]}, text.name)


def _of_data(run: Path, graph: Graph) -> Entries:
    from ..data import Share
    from ..evaluate import as_it_ran
    from ..opening import open_data

    chosen = as_it_ran(spec_of_run(run), read_run(run))
    words = run / FOLDER
    share = Share(ROWS)
    data, _ = open_data(chosen, share, run, read_run(run).get("files"), words if words.is_dir() else None)
    names = [v.name for v in graph.of_kind(Input) if v.default is None]
    first = data.batch(0)
    missing = [n for n in names if n not in first]
    if missing:
        raise UserError(f"the run's data have no `{missing[0]}`, which `{graph.name}` takes")
    if any(node.op.name == "conv2d" for node in graph.walk()):
        count, held = PICTURES // ROWS, PICTURES_HELD_OUT
    else:
        count, held = max(1, CALIBRATION // max(first[names[0]].size, 1)), HELD_OUT
    chunks = [{n: data.batch(i)[n] for n in names} for i in range(count)]
    kept = list(data.heldout(-(-held // ROWS)))
    held_out = {n: np.concatenate([batch[n] for batch in kept]) for n in names}
    return Entries(chunks, held_out, "the run's own held-out data")


def _chunks(name: str, rows: np.ndarray) -> list[Chunk]:
    rows = rows[: max(1, CALIBRATION // rows.shape[1])]
    return [{name: rows[i : i + ROWS]} for i in range(0, len(rows), ROWS)]


def share_of(chunk: Mapping[str, np.ndarray], rows: int) -> Chunk:
    """The first rows of a chunk."""
    return {name: array[:rows] for name, array in chunk.items()}
