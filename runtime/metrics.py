"""The curves of a run: FOLDER/metrics.jsonl for programs, FOLDER/tensorboard for eyes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from .errors import UserError

LINES = "metrics.jsonl"
EVENTS = "tensorboard"


class Metrics:
    """Writes numbers by name and step.

    folder   of the run; made if need be
    resume   the step that the run goes on from: what was written for later steps is dropped (or, in
             TensorBoard's files, marked so), so that a curve holds each step once
    enabled  False on every process but the first; then nothing is written

    A line is {"step": int, "time": seconds since 1970, name: number, ...}; numbers that JSON hasn't (nan and
    the infinities) become null. Lines are flushed one by one; a killed process loses at most the one being
    written. Raises UserError when the folder can't be written.
    """

    def __init__(self, folder: str | Path, resume: int = 0, enabled: bool = True) -> None:
        self._enabled = enabled
        if not enabled:
            return
        folder = Path(folder)
        path = folder / LINES
        try:
            folder.mkdir(parents=True, exist_ok=True)
            known = path.exists()
            if known:
                _drop_after(path, resume)
            self._lines = open(path, "a")  # noqa: SIM115 (held until close)
        except OSError as error:
            raise UserError(f"can't write metrics in {folder}: {error.strerror or error}") from error
        self._events = SummaryWriter(str(folder / EVENTS), purge_step=resume + 1 if known else None)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Records numbers (anything that float() takes, device scalars too) under names like "train/loss"."""
        if not self._enabled:
            return
        now = time.time()
        numbers = {name: float(value) for name, value in values.items()}
        line: dict[str, float | None] = {"step": step, "time": round(now, 3)}
        line |= {name: number if math.isfinite(number) else None for name, number in numbers.items()}
        try:
            self._lines.write(json.dumps(line) + "\n")
            self._lines.flush()
        except OSError as error:
            raise UserError(f"can't write metrics: {error.strerror or error}") from error
        for name, number in numbers.items():
            self._events.add_scalar(name, number, step, walltime=now)

    def close(self) -> None:
        if self._enabled:
            self._lines.close()
            self._events.close()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, in order; a last one that was cut off by a kill is left out.

    Raises UserError when there are none.
    """
    path = Path(folder) / LINES
    try:
        text = path.read_text()
    except OSError as error:
        raise UserError(f"there are no metrics in {folder}", help="give the folder of a training run") from error
    return [line for line in map(_parse, text.splitlines()) if line is not None]


def _parse(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None


def _drop_after(path: Path, step: int) -> None:
    lines = path.read_text().splitlines()
    kept = [text for text in lines if (line := _parse(text)) is not None and line["step"] <= step]
    beside = path.with_name(path.name + ".part")
    beside.write_text("".join(text + "\n" for text in kept))
    beside.replace(path)
