"""Checkpoint folders of Hugging Face's layout: in, and out again, tensor by tensor."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from planform.compiler.elaborate import elaborate
from planform.compiler.weights import WeightsMap, weights_map
from planform.spec import Spec, SpecError, load

from .companions import COMPANIONS, FOLDER
from .errors import UserError
from .run import WEIGHTS, write_run
from .tensor_files import TensorFolder, TensorWriter

_DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16", "float64": "float64"}

Told = Callable[[str, int, int], None]
"""Called with a tensor's name, how many are done, and how many there are."""


def read_config(folder: str | Path) -> dict[str, Any]:
    """Raises: UserError when there is no readable config.json."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text())
    except OSError as e:
        raise UserError(
            f"{folder} has no config.json", help="give the folder of a checkpoint in Hugging Face's layout"
        ) from e
    except ValueError as e:
        raise UserError(f"{path} is damaged: {e}") from e
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no mapping")
    return config


def fit(name: str, config: Mapping[str, Any]) -> tuple[Spec, list[str], WeightsMap]:
    """(the spec at the sizes of a configuration, the overrides that make them, its checked weights map).

    A size of the spec whose dims are those of the configuration is taken by its name.
    Raises: UserError naming the field that the spec can't express; SpecError.
    """
    try:
        sizes: tuple[str | None, ...] = load(name).sizes or (None,)
    except SpecError as e:  # several sizes, and none chosen yet
        if not e.diagnostics[0].expected:
            raise
        sizes = e.diagnostics[0].expected
    first = load(name, sizes[0])
    try:
        dims = weights_map(first, [elaborate(first, g) for g in first.graphs]).dims(config)
    except ValueError as e:
        raise UserError(str(e), help=f"this checkpoint is no {first.name} as {first.source.name} has it") from e
    best = min(sizes, key=lambda s: len(_differing(load(name, s), dims)))
    overrides = [f"{k}={v}" for k, v in _differing(load(name, best), dims).items()]
    spec = load(name, best, overrides)
    return spec, overrides, weights_map(spec, [elaborate(spec, g) for g in spec.graphs])


def _differing(spec: Spec, dims: Mapping[str, int]) -> dict[str, int]:
    from planform.spec import Diagnostics, dim_values

    mine = dim_values(spec.dims, Diagnostics())
    return {k: v for k, v in dims.items() if mine.get(k) != v}


def compare(found: TensorFolder, want: WeightsMap) -> None:
    """Raises: UserError listing every missing, extra or wrongly shaped tensor."""
    names = want.by_name()
    faults = [f"missing: {n} {list(t.their_shape)}" for n, t in names.items() if n not in found]
    faults += [f"extra: {n} {list(found.shape(n))}" for n in found if n not in names and n not in want.ignore]
    faults += [
        f"wrong shape: {n} is {list(found.shape(n))}, expected {list(t.their_shape)}"
        for n, t in names.items()
        if n in found and found.shape(n) != t.their_shape
    ]
    if faults:
        shown = "\n  ".join(faults[:40]) + (f"\n  and {len(faults) - 40} more" if len(faults) > 40 else "")
        raise UserError(f"the tensors of {found.folder} don't fit {want.spec.name}:\n  {shown}")


def import_folder(folder: str | Path, name: str, out: str | Path, tell: Told | None = None) -> Path:
    """Turns a checkpoint folder into one that every command takes: `run.json` and the weights by our names.

    Dtypes stay as they are. Written beside `out`, then renamed. Raises: UserError, SpecError.
    """
    folder, out = Path(folder), Path(out)
    if out.exists():
        raise UserError(f"{out} exists already", help="give a folder that doesn't exist yet")
    config = read_config(folder)
    spec, overrides, weights = fit(name, config)
    found = TensorFolder(folder)
    compare(found, weights)
    facts = {"imported": {"format": weights.format, "config": config, "step": 0}, "tokenizer": _tokenizer(folder)}
    with _beside(out) as stage:
        with TensorWriter(stage / WEIGHTS) as writer:
            for i, t in enumerate(weights.tensors):
                writer.add(t.parameter, t.to_ours(found[t.name]))
                if tell:
                    tell(t.parameter, i + 1, len(weights.tensors))
        _copy_companions(folder, stage / FOLDER)
        write_run(stage, spec, overrides, facts)
    return out


def export_folder(
    spec: Spec,
    parameters: Mapping[str, np.ndarray],
    out: str | Path,
    *,
    config: Mapping[str, Any] | None = None,
    companions: Path | None = None,
    tell: Told | None = None,
) -> Path:
    """Writes parameters by logical name as a folder that transformers loads. `config` is the configuration that
    the weights came with, if they did; what the spec says goes over it. Raises: UserError, SpecError."""
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists already", help="give a folder that doesn't exist yet")
    weights = weights_map(spec, [elaborate(spec, g) for g in spec.graphs])
    dtypes: set[str] = set()
    with _beside(out) as stage:
        with TensorWriter(stage) as writer:
            for i, t in enumerate(weights.tensors):
                array = np.asarray(parameters[t.parameter])
                dtypes.add(array.dtype.name)
                writer.add(t.name, t.to_theirs(array))
                if tell:
                    tell(t.name, i + 1, len(weights.tensors))
        told = {**(config or {}), **weights.their_config()}
        if weights.architecture:
            told["architectures"] = [weights.architecture]
        if len(dtypes) == 1 and (dtype := dtypes.pop()) in _DTYPES:
            told["dtype"] = _DTYPES[dtype]
        (stage / "config.json").write_text(json.dumps(told, indent=2) + "\n")
        if companions:
            _copy_companions(companions, stage)
    return out


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
