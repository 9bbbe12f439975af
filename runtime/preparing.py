"""Preparing an exported folder for the machine that will run it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from .artefact import is_artefact
from .errors import UserError


@dataclass(frozen=True)
class Prepared:
    """bytes on disk; seconds that loading takes, before and now."""

    bytes: int
    before: float
    now: float


def prepare_artefact(folder: Path) -> Prepared:
    """Lays out the weights of a folder that `export` made as onnxruntime wants them here, checks what that gives
    against the folder's contract, and keeps it beside the model, which stays as it is.

    Raises: UserError for another folder, one that is damaged, or one that can't be written to.
    """
    from planform.backends.onnx import discard, prepare

    if not is_artefact(folder):
        raise UserError(f"{folder} is no folder that planform export made")
    try:
        discard(folder)
        before = _checked(folder)
        size = prepare(folder)
        try:
            return Prepared(size, before, _checked(folder))
        except UserError:
            discard(folder)
            raise
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror or error}") from error


def _checked(folder: Path) -> float:
    """Seconds that loading it takes. Raises: UserError where it isn't what its contract says."""
    from planform.backends.onnx import load, verify_contract

    if problems := verify_contract(folder).problems:
        raise UserError(f"{folder}: {problems[0]}", help="planform verify shows all that is wrong with it")
    started = time.perf_counter()
    load(folder)
    return time.perf_counter() - started
