"""A stream in chunks is the whole sequence; the documents of a packed row are streams of their own."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.evidence import row

from . import theirs

CHUNKS = (1, 7, 64)
LENGTHS = (150, 3, 88, 1, 26)
"""Entries of the documents that are packed into one row, and that are the rows of a batch of streams."""

WINDOWS = (16, 90)
"""Shorter than the longest chunk, and longer than every chunk."""


@row(
    "recurrentgemma",
    "chunks",
    "a packed row of 5 documents = its documents as streams (one document each), in chunks of 1, 7 and 64, past the "
    "window: the reference to 1e-10 relative, XLA and ONNX to 2e-5",
    1,
)
def chunks() -> tuple[Any, bool]:
    from planform.backends import reference
    from planform.compiler.passes.pipeline import optimise
    from planform.runtime.engines import engine
    from planform.runtime.verify import TOLERANCE

    figure: dict[str, Any] = {}
    holds = True
    for window in WINDOWS:
        m = theirs.model("d=32", "lru=48", "heads=4", "head_dim=8", "dims.blocks=2", "layers=5", f"window={window}",
                         "vocab=300", "intermediate=96")  # fmt: skip
        starts = np.cumsum([0, *LENGTHS])
        position = np.concatenate([np.arange(n) for n in LENGTHS])[None].astype(np.int32)
        document = np.repeat(np.arange(len(LENGTHS)), LENGTHS)[None].astype(np.int32)
        tokens = np.random.default_rng(1).integers(0, 300, position.shape).astype(np.int32)
        given = {"tokens": tokens, "position": position, "document": document}
        whole = reference.run(m.graph, m.parameters, given)["logits"][0]
        want = [whole[a:b] for a, b in zip(starts, starts[1:])]
        for name in ("reference", "xla", "onnx"):
            step = optimise(m.graph, name, "step")  # type: ignore[arg-type]
            for chunk in CHUNKS:
                stream = engine(name, m.parameters).stream(step, len(LENGTHS), max(LENGTHS) + chunk)
                got: list[list[np.ndarray]] = [[] for _ in LENGTHS]
                for start in range(0, max(LENGTHS), chunk):
                    count = np.clip(np.array(LENGTHS) - start, 0, chunk).astype(np.int32)
                    part = np.zeros((len(LENGTHS), chunk), np.int32)
                    for r, n in enumerate(count):
                        part[r, :n] = tokens[0, starts[r] + start : starts[r] + start + n]
                    logits = stream.step({"tokens": part}, count)["logits"]
                    for r, n in enumerate(count):
                        got[r].append(logits[r, :n])
                off = max(float(np.abs(np.concatenate(g) - w).max()) for g, w in zip(got, want))
                off /= float(np.abs(whole).max())
                figure[f"{name}, window {window}, chunks of {chunk}"] = float(f"{off:.1e}")
                holds &= off <= (1e-10 if name == "reference" else TOLERANCE)
    return figure, holds
