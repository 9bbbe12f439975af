"""What the rounding of each matrix alone costs, without writing a model for each."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from planform.backends import onnx
from planform.backends.onnx.quantization import Product, Rounded
from planform.backends.onnx.quantization.calibration import new_streams

from .entries import Chunk
from .measure import divergence


def sensitivities(
    lowered: onnx.Lowered, products: Mapping[str, Product], round: Callable[[str], Rounded], chunk: Chunk,
    metrics: Mapping[str, str],
) -> dict[str, float]:  # fmt: skip
    """The divergence with one matrix rounded and the others in float32, summed over the outputs, by its name.

    lowered  the model in float32, with all entries' outputs; it is changed: its matrices become inputs with a default
    """
    graph = lowered.model.graph
    weights = {str(v.name): v for v in graph.initializers.values()}
    graph.inputs.extend(weights[name] for name in products)
    with tempfile.TemporaryDirectory() as scratch:
        onnx.save(lowered.model, Path(scratch) / onnx.MODEL)
        session = onnx.load(scratch)
    names = list(metrics)
    feeds = new_streams(session, chunk)

    def run(change: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {**feeds, **change}), strict=True))

    plain = run({})
    found = {}
    for name, p in products.items():
        w = round(name).dequantised()
        got = run({name: np.ascontiguousarray(w if p.transposed else w.T)})
        found[name] = sum(divergence(metrics, [plain], [got]).values())
    return found
