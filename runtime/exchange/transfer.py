"""In and out, whatever the format: recognised, compared, and written beside the place first."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from planform.compiler.weights import weights_map
from planform.spec import Spec

from ..companions import COMPANIONS, FOLDER
from ..errors import UserError
from ..run import WEIGHTS, write_run
from ..tensor_files import TensorWriter
from .deepmind import DeepMind
from .format import Format
from .huggingface import HuggingFace

FORMATS: dict[str, Format] = {f.name: f for f in (HuggingFace(), DeepMind())}

PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")


def import_folder(folder: str | Path, name: str, out: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Turns a checkpoint folder into one that every command takes: `run.json` and the weights by our names.

    name       of the spec, with `@size` where the checkpoint leaves that open
    overrides  of the spec
    Dtypes stay as they are. Written beside `out`, then renamed. Raises: UserError, SpecError.
    """
    folder, out = Path(folder), Path(out)
    _check_free(out)
    try:
        format = recognise(folder)
    except OSError as e:
        raise UserError(f"can't read {folder}: {e.strerror or e}") from e
    found = format.read(folder, name, overrides)
    tokenizer = _tokenizer(found.beside)
    told = {"imported": {"format": format.name, "step": 0, **found.facts}, "tokenizer": tokenizer}
    with _beside(out) as stage:
        with TensorWriter(stage / WEIGHTS) as writer:
            for t in found.weights.tensors:
                for parameter, array in t.to_ours(found.tensors[t.name]):
                    writer.add(parameter, array)
        _copy_companions(found.beside, stage / FOLDER)
        write_run(stage, found.spec, found.overrides, told)
    return out


def export_folder(
    spec: Spec,
    parameters: Mapping[str, np.ndarray],
    out: str | Path,
    format: str = HuggingFace.name,
    *,
    imported: Mapping[str, Any] | None = None,
    companions: Path | None = None,
) -> Path:
    """Writes parameters by logical name as a folder that another library loads.

    imported    what `run.json` says of the checkpoint that they came from, if they did
    companions  the folder of their tokenizer
    Raises: UserError, SpecError.
    """
    out = Path(out)
    _check_free(out)
    weights = weights_map(spec, format)
    facts = imported if imported and imported["format"] == format else {}
    with _beside(out) as stage:
        FORMATS[format].write(stage, weights, lambda name: np.asarray(parameters[name]), facts)
        if companions:
            _copy_companions(companions, stage)
    return out


def recognise(folder: Path) -> Format:
    """The format of a checkpoint folder. Raises: UserError where it is none, saying what to give instead."""
    for format in FORMATS.values():
        if folder.is_dir() and format.recognises(folder):
            return format
    if not folder.exists():
        raise UserError(f"there is no folder {folder}")
    inside = sorted(folder.iterdir()) if folder.is_dir() else [folder]
    if pickle := next((p for p in inside if p.suffix in PICKLES), None):
        raise UserError(
            f"{pickle} is a pickle, which can run any code when it is loaded, so it is not read",
            help="take the same model as safetensors, or as flax parameters in an Orbax folder",
        )
    better = next((p for p in inside if p.is_dir() and any(f.recognises(p) for f in FORMATS.values())), None)
    known = " or ".join(f.layout for f in FORMATS.values())
    raise UserError(f"{folder} is no checkpoint folder", help=f"{better} is one" if better else f"give one in {known}")


def _check_free(out: Path) -> None:
    if out.exists():
        raise UserError(f"{out} exists already", help="give a folder that doesn't exist yet")


def _copy_companions(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for file in COMPANIONS:
        if (source / file).is_file():
            shutil.copyfile(source / file, target / file)


def _tokenizer(folder: Path) -> str | None:
    return next((f for f in ("tokenizer.json", "tokenizer.model") if (folder / f).exists()), None)


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A folder next to `out` that becomes it when the block ends well, and is gone otherwise."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as e:
        raise UserError(f"can't write in {out.parent}: {e.strerror or e}") from e
    try:
        yield stage
        stage.chmod(0o755)
        stage.rename(out)
    except OSError as e:
        raise UserError(f"can't write {out}: {e.strerror or e}") from e
    finally:
        shutil.rmtree(stage, ignore_errors=True)
