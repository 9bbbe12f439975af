"""Reading a checkpoint folder of Hugging Face's layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np


def tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays, in float32."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "numpy") as given:
            for name in given.keys():  # noqa: SIM118 - it isn't a mapping
                yield name, given.get_tensor(name).astype(np.float32)
