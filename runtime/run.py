"""What a run's folder says of itself: the spec it trains and the choices that were made, in `run.json`.

Everything that comes after training (generate, export, eval) starts from the folder alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from planform.compiler.elaborate import elaborate
from planform.compiler.parameters import layers, scatter
from planform.spec import Spec, load_text

from .checkpoint import read_arrays, steps
from .errors import UserError
from .state import parameter_name
from .tensor_files import TensorFolder

FILE = "run.json"
VERSION = 1
WEIGHTS = "weights"
"""The folder of imported weights."""


def write_run(folder: Path, spec: Spec, overrides: Sequence[str], facts: Mapping[str, Any]) -> None:
    """Writes `run.json`. Raises: UserError when the folder can't be written."""
    path = Path(spec.source.name)
    told = {
        "version": VERSION,
        "spec": {
            "model": spec.name,
            "name": spec.source.name,
            "size": spec.size,
            "overrides": list(overrides),
            # Where the names of other files in it start.
            "folder": str(path.resolve().parent) if path.is_file() else None,
            "text": spec.source.text,
        },
        **facts,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / f"{FILE}.part"
        beside.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        beside.replace(folder / FILE)
    except OSError as error:
        raise UserError(f"can't write in {folder}: {error.strerror or error}") from error


def read_run(folder: str | Path) -> dict[str, Any]:
    """What `run.json` says. Raises: UserError when there is none, or it is damaged."""
    path = Path(folder) / FILE
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = told["version"]
    except OSError as error:
        raise UserError(f"{folder} is not the folder of a training run", help="it has no run.json") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}", help="train again, or give another folder") from error
    if version != VERSION:
        raise UserError(f"{path} was written by another version of this program", help="use the version that made it")
    return told


def spec_of_run(folder: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """The spec that a run trains, its size and overrides applied; those it uses are read when they are asked for.

    overrides  further ones, which a trained model allows as far as every parameter stays what it is: the window of
               local attention, for instance (Gemma 2, table 10)
    Raises: UserError naming a parameter that would change; SpecError.
    """
    told = read_run(folder)["spec"]
    base = Path(told["folder"]) if told["folder"] else None

    def load(more: Sequence[str]) -> Spec:
        return load_text(told["text"], told["name"], told["size"], (*told["overrides"], *more), base, complete=False)

    if not overrides:
        return load(())
    spec = load(overrides)
    _check_parameters(load(()), spec, " ".join(overrides))
    return spec


def _check_parameters(trained: Spec, wanted: Spec, overrides: str) -> None:
    """Raises: UserError where a parameter of the trained spec would have another shape, or one comes or goes."""
    before, after = _shapes(trained), _shapes(wanted)
    help = "on a trained model set only what leaves its parameters as they are, such as `window=1024`"
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            raise UserError(f"with {overrides} there is no parameter {name}, which was trained", help=help)
        if name not in before:
            raise UserError(f"with {overrides} there is a parameter {name}, which was never trained", help=help)
        if before[name] != after[name]:
            raise UserError(
                f"{overrides} changes the shape of {name} from {list(before[name])} to {list(after[name])}", help=help
            )


def _shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """The shape of every logical parameter."""
    return {
        name: p.type.shape({})[p.stacked :]
        for graph in spec.graphs
        for p in elaborate(spec, graph).weights
        for name in layers(p.path)
    }


def parameters_of_run(folder: str | Path, step: int | None = None) -> Mapping[str, np.ndarray]:
    """The parameters by logical name: from the newest checkpoint or that of a step, or as they were imported, in
    which case each is read from disk when it is asked for.

    Raises: UserError when there are none.
    """
    imported = Path(folder) / WEIGHTS
    if step is None and imported.is_dir() and not steps(folder):
        return TensorFolder(imported)
    arrays = read_arrays(folder, step, only=lambda name: parameter_name(name) is not None)
    return scatter({str(parameter_name(name)): array for name, array in arrays.items()})
