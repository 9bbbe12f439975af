"""Writing the artefact: the model, its weights, and the contract that says how to run and check it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import onnx_ir as ir

from planform.compiler.ir import Graph

from .contract import Fixture, write_contract
from .genai import Generation, for_genai, write_config
from .lowering import Parameters, lower
from .session import MODEL

DATA = MODEL + ".data"
_INLINE = 256  # bytes up to which a tensor stays in the model file itself


def export(
    graph: Graph,
    parameters: Parameters,
    folder: str | Path,
    *,
    metadata: Mapping[str, str] = MappingProxyType({}),
    max_positions: int = 8192,
    fixture: Fixture | None = None,
    companions: Mapping[str, bytes] = MappingProxyType({}),
    genai: Generation | None = None,
) -> Path:
    """Writes `model.onnx`, `model.onnx.data`, `contract.json`, `README.txt` and what is given besides.

    Weights are asked for one at a time, in the order of the file, so no more than the largest one (packed
    ones together) is in memory. The bytes depend on the arguments alone. Everything is written beside the
    folder first; files of other names in it stay.

    Args:
        graph: a whole-sequence graph, or one in step form.
        parameters: the array of a logical parameter name.
        metadata: what the contract and the model say of their origin (`spec`, `size`, `hash`).
        max_positions: the longest stream that a step form is made for.
        fixture: inputs with expected outputs, for `verify_contract` and for anybody else.
        companions: files to put beside the model, by name: a tokenizer, what generation needs.
        genai: makes it a folder that onnxruntime-genai loads too, with these ids in its configuration.
    Returns: the folder. Raises: CannotLower for a graph that has no ONNX form, OSError where the disk fails.
    """
    lowered = lower(graph, parameters, max_positions=max_positions, metadata=metadata)
    if genai is not None:
        lowered = for_genai(lowered)
    folder = Path(folder)
    with _beside(folder) as stage:
        ir.save(lowered.model, stage / MODEL, external_data=DATA, size_threshold_bytes=_INLINE)
        for name, content in companions.items():
            (stage / name).write_bytes(content)
        if genai is not None:
            write_config(stage, lowered, genai)
        write_contract(stage, lowered, metadata, fixture)
    return folder


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A folder next to `folder` whose files replace those of the same names when the block ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield stage
        for path in stage.iterdir():
            with open(path, "rb") as f:
                os.fsync(f.fileno())
        stage.chmod(0o755)
        if not folder.exists():
            os.rename(stage, folder)
            return
        # The contract goes last: it holds the hashes by which a mixture of old and new is found out.
        for path in sorted(stage.iterdir(), key=lambda p: (p.name == "contract.json", p.name)):
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
