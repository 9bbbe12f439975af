"""Writing the artefact: the model, its weights, and the contract that says how to run and check it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import onnx
import onnx_ir as ir

from planform.compiler.ir import Graph

from .contract import Fixture, write_contract
from .genai import Generation, for_genai, write_config
from .lowering import Parameters, lower
from .prepared import discard
from .quantization import PLAIN, Quantization
from .quantization.products import SAME_BYTES
from .session import MODEL

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
    quantization: Quantization = PLAIN,
) -> Path:
    """Writes `model.onnx`, `model.onnx.data`, `contract.json`, `README.txt` and what is given besides.

    Weights are asked for one at a time, in the order of the file, so no more than the largest one (packed
    ones together) is in memory. The bytes depend on the arguments alone. Everything is written beside the
    folder first; files of other names in it stay, but for what `prepare` made of an earlier model.

    Args:
        graph: a whole-sequence graph, or one in step form.
        parameters: the array of a logical parameter name.
        metadata: what the contract and the model say of their origin (`spec`, `size`, `hash`).
        max_positions: the longest stream that a step form is made for, where its state grows with it.
        fixture: inputs with expected outputs, for `verify_contract` and for anybody else.
        companions: files to put beside the model, by name: a tokenizer, what generation needs.
        genai: makes it a folder that onnxruntime-genai loads too, with these ids in its configuration.
        quantization: how matrices and caches are stored; float32 without one.
    Returns: the folder. Raises: CannotLower for a graph that has no ONNX form, OSError where the disk fails.
    """
    lowered = lower(graph, parameters, max_positions=max_positions, metadata=metadata, quantization=quantization)
    if genai is not None:
        lowered = for_genai(lowered)
    folder = Path(folder)
    with _beside(folder) as stage:
        save(lowered.model, stage / MODEL)
        for name, content in companions.items():
            (stage / name).write_bytes(content)
        if genai is not None:
            write_config(stage, lowered, genai, lowered.max_positions or max_positions)
        write_contract(stage, lowered, metadata, fixture)
    discard(folder)
    return folder


def save(model: ir.Model, path: Path) -> None:
    """Writes a model and, beside it, its weights. What two initializers share is in the file once."""
    graph = model.graph
    shared = {str(v.name): str(v.meta[SAME_BYTES]) for v in graph.initializers.values() if SAME_BYTES in v.meta}
    shared = {name: of for name, of in shared.items() if of in graph.initializers}
    held = {name: graph.initializers.pop(name) for name in shared}
    try:
        ir.save(model, path, external_data=path.name + ".data", size_threshold_bytes=_INLINE)
    finally:
        for value in held.values():
            graph.initializers.add(value)
    if shared:
        proto = onnx.load(str(path), load_external_data=False)
        written = {t.name: t for t in proto.graph.initializer}
        for name, of in sorted(shared.items()):
            again = proto.graph.initializer.add()
            again.CopyFrom(written[of])
            again.name = name
            shape = held[name].shape
            assert shape is not None
            again.dims[:] = shape.numpy()
        path.write_bytes(proto.SerializeToString(deterministic=True))


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
