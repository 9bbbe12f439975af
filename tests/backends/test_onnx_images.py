"""Networks of convolutions as files: turned once at most, norms in their kernels, and in 8 bits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from planform.backends.onnx import Lowered, lower, run
from planform.backends.onnx.quantization import KINDS, Quantization, Range, Scheme
from planform.backends.onnx.quantization.calibration import image_ranges
from planform.backends.onnx.writing import save
from planform.backends.reference import run as reference
from planform.compiler.elaborate import elaborate
from planform.compiler.ir import Graph
from planform.compiler.parameters import initial
from planform.spec import load, load_text

from .xla_graphs import relative

NETWORK = """
planform: 1
model: network
dims: {c: 16}
blocks:
  unit(n, size, stride=1): conv2d(n, size, stride=stride, bias=true) >> batch_norm
  layer: id + (unit(c, 3) >> relu >> unit(c, 3)) >> relu
graphs:
  g:
    inputs:
      image: float[batch, height, width, 3]
    body: |
      y = image >> unit(c, 5, 2) >> relu >> max_pool(3, stride=2) >> layer ^ 2 >> conv2d(8, 1, stride=2)
          >> batch_norm(affine=false) >> mean(height, width)
"""


def parameters_of(graph: Graph) -> dict[str, np.ndarray]:
    """Those that a trained one might have."""
    rng, found = np.random.default_rng(0), initial(graph.weights)
    for name, a in found.items():
        kind = name.rpartition(".")[2]
        if kind in ("variance", "scale"):
            found[name] = rng.uniform(0.5, 1.5, a.shape).astype(np.float32)
        elif kind in ("mean", "bias"):
            found[name] = rng.normal(0, 0.3, a.shape).astype(np.float32)
    return found


def images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 37, 29, 3)).astype(np.float32)


def kinds(lowered: Lowered) -> Counter[str]:
    return Counter(n.op_type for n in lowered.model.graph)


def written(text: str) -> tuple[dict[str, np.ndarray], Counter[str]]:
    """(parameters of a network, the kinds of nodes of its file), once the file gave what the reference gives."""
    graph = elaborate(load_text(text, "network.yaml"), "g")
    parameters = parameters_of(graph)
    lowered = lower(graph, parameters.__getitem__)
    want = reference(graph, parameters, {"image": images()})["y"]
    assert relative(run(lowered, {"image": images()})["y"], want) < 1e-5
    return parameters, kinds(lowered)


def optimised(lowered: Lowered, folder: Path) -> Counter[str]:
    """What the runtime makes of it, on a machine with whole numbers."""
    save(lowered.model, folder / "model.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(str(folder / "model.onnx"), options)
    return Counter(n.op_type for n in onnx.load(folder / "optimised.onnx", load_external_data=False).graph.node)


def test_norms_are_in_the_kernels_and_images_turned_once() -> None:
    """A convolution of dilated columns wants the image's channels ahead."""
    first = "image >> conv2d(c, 5, stride=2, dilation=2, bias=true) >> batch_norm"
    _, found = written(NETWORK.replace("image >> unit(c, 5, 2)", first))
    pooled = {"GlobalAveragePool": 1, "Reshape": 1}
    assert found == {"Transpose": 1, "Conv": 6, "Relu": 5, "MaxPool": 1, "Add": 2, **pooled}


def test_images_of_few_channels_are_read_where_they_lie() -> None:
    parameters, found = written(NETWORK)
    pooled = {"GlobalAveragePool": 1, "Reshape": 2}
    assert found == {"Unsqueeze": 1, "Conv": 6, "Relu": 5, "MaxPool": 1, "Add": 2, **pooled}
    assert all(np.isfinite(parameters[n]).all() for n in parameters)


def test_a_norm_that_stands_alone_stays_a_factor_and_a_shift() -> None:
    """What others read of a convolution keeps its value."""
    text = NETWORK[: NETWORK.index("      y =")] + (
        "      h = image >> conv2d(c, 3)\n"
        "      y = (h >> batch_norm >> relu) + (h >> conv2d(c, 1)) >> batch_norm\n"
    )  # fmt: skip
    written(text.replace("  layer:", "  other:"))


def test_residual_networks_have_nothing_else() -> None:
    graph = elaborate(load("resnet50", overrides=["base=8", "n3=2", "classes=7"]), "classify")
    found = kinds(lower(graph, parameters_of(graph).__getitem__))
    assert found.pop("MatMul") == 1 and found.pop("Unsqueeze") == 1 and found.pop("Reshape") == 2
    assert set(found) == {"Conv", "Relu", "MaxPool", "Add", "GlobalAveragePool"}
    assert found["Conv"] == 1 + 4 + 3 * 12 and found["GlobalAveragePool"] == 1


def test_summands_are_read_last_to_first() -> None:
    """So that the runtime, which begins with the last operand, makes them in the order of the graph."""
    graph = elaborate(load("resnet50", overrides=["base=8", "n3=2", "classes=7"]), "classify")
    nodes = list(lower(graph, parameters_of(graph).__getitem__).model.graph)
    made = {y: i for i, n in enumerate(nodes) for y in n.outputs}
    sums = [[made[x] for x in n.inputs] for n in nodes if n.op_type == "Add" and all(x in made for x in n.inputs)]
    assert len(sums) == 12 and all(later > earlier for later, earlier in sums)


def test_in_8_bits(tmp_path: Path) -> None:
    graph = elaborate(load_text(NETWORK, "network.yaml"), "g")
    parameters = parameters_of(graph)
    plain = lower(graph, parameters.__getitem__)
    ranges = image_ranges(plain, [{"image": images(8)[i : i + 2]} for i in range(0, 8, 2)])
    assert len(ranges) == 1 + 1 + 2 * 3 + 1 + 1 and all(r.low <= 0 < r.high for r in ranges.values())
    small = lower(graph, parameters.__getitem__, quantization=Quantization(Scheme("int8"), images=ranges))
    assert sum(small.kernels.values()) == 16 * (5 * 5 * 3 + 4 * 9 * 16) + 16 * 8
    found = optimised(small, tmp_path)
    assert found["QLinearConv"] == 6 and found["QLinearAdd"] == 2 and not found["Conv"]
    want, got = (run(m, {"image": images()})["y"] for m in (plain, small))
    assert 1e-4 < relative(got, want) < 0.05


@pytest.mark.parametrize("low, high", [(0.0, 3.0), (-1.0, 3.0), (-2.0, -1.0), (1.0, 2.0), (0.0, 0.0)])
def test_8_bits_tell_zero_and_both_ends(low: float, high: float) -> None:
    found = Range(low, high)
    assert 0 <= found.zero <= 255
    for value in (low, 0.0, high):
        code = np.clip(np.rint(value / found.scale) + found.zero, 0, 255)
        assert abs((code - found.zero) * found.scale - value) <= found.scale * 0.51
    assert KINDS["int8"].high == 63
