"""A model with its weights laid out as this machine's onnxruntime wants them, beside the model: loading maps them.

What onnxruntime makes of weights depends on its version and on the processor, and it doesn't look whether a file fits
either. So a stamp says where and of what files this one was made; elsewhere, and where the model has changed since, the
model itself is loaded.
"""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import onnxruntime as ort

PREPARED, STAMP = "prepared.onnx", "prepared.json"
DATA = PREPARED + ".data"
LEAST = 1024
"""Bytes from which a weight goes into the file of data."""


def write(folder: Path, model: str, settings: ort.SessionOptions) -> int:
    """Writes `PREPARED` with its data and its stamp for the file `model` of the folder, and returns their bytes.

    Raises: OSError where onnxruntime refuses the model or nothing can be written; nothing is left then.
    """
    discard(folder)
    settings.optimized_model_filepath = str(folder / PREPARED)
    for key, value in (
        ("optimized_model_external_initializers_file_name", DATA),
        ("optimized_model_external_initializers_min_size_in_bytes", str(LEAST)),
        ("save_external_prepacked_constant_initializers", "1"),
    ):
        settings.add_session_config_entry(f"session.{key}", value)
    try:
        ort.InferenceSession(str(folder / model), settings, providers=["CPUExecutionProvider"])
        (folder / STAMP).write_text(json.dumps(stamp(folder), indent=2))
    except BaseException as error:
        discard(folder)
        if isinstance(error, Exception) and not isinstance(error, OSError):  # onnxruntime's own say no more than that
            raise OSError(f"onnxruntime can't lay out {model}: {error}") from error
        raise
    return sum((folder / name).stat().st_size for name in (PREPARED, DATA, STAMP) if (folder / name).exists())


def discard(folder: Path) -> None:
    """Removes what `write` wrote: the stamp first, without which the rest is not read."""
    for name in (STAMP, PREPARED, DATA):
        (folder / name).unlink(missing_ok=True)


def prepared(folder: Path) -> Path | None:
    """The file to load in the place of a folder's model, where it was prepared here and is that of the model still."""
    try:
        told = json.loads((folder / STAMP).read_text())
    except (OSError, ValueError):
        return None
    return folder / PREPARED if told == stamp(folder) else None


def stamp(folder: Path) -> dict[str, Any]:
    """What a prepared model goes with: the runtime, the processor, and the files that it is made of and consists of."""
    files = {p.name: p.stat() for p in sorted(folder.iterdir()) if p.name.endswith((".onnx", ".onnx.data"))}
    return {
        "onnxruntime": ort.__version__,
        "processor": processor(),
        "files": {name: [s.st_size, s.st_mtime_ns] for name, s in files.items()},
    }


def processor() -> str:
    """Its name and a digest of what it can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = told.get("flags") or told.get("Features") or ""
    digest = hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()
    return f"{told.get('model name') or platform.machine()} {digest[:16]}"
