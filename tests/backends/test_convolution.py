"""Convolutions and pools against torch's and flax's, on XLA and onnxruntime: padding, strides, groups, dilation."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch

from planform.backends.onnx import lower as onnx_lower
from planform.backends.onnx import run as onnx_run
from planform.backends.xla import Policy, lower
from planform.compiler.analyses.reach import total_reach
from planform.compiler.elaborate import elaborate
from planform.compiler.ir import Graph
from planform.spec import load_text

from .xla_graphs import relative


def graph_of(expression: str, dims: str = "height, width, 6") -> Graph:
    text = f"""
planform: 1
model: image
graphs:
  g:
    inputs:
      x: float[batch, {dims}]
    body: y = x >> {expression}
"""
    return elaborate(load_text(text, "image.yaml"))


# (the expression, what torch calls it): the last window doesn't end at the border, strides don't divide the cells.
SAME: dict[str, Any] = {
    "conv2d(4, 3)": lambda x, w: torch.nn.functional.conv2d(x, w, padding=1),
    "conv2d(4, 3, stride=2)": lambda x, w: torch.nn.functional.conv2d(x, w, stride=2, padding=1),
    "conv2d(4, 7, stride=2)": lambda x, w: torch.nn.functional.conv2d(x, w, stride=2, padding=3),
    "conv2d(4, 1, stride=2)": lambda x, w: torch.nn.functional.conv2d(x, w, stride=2),
    "conv2d(4, 1)": lambda x, w: torch.nn.functional.conv2d(x, w),
    "conv2d(9, [3, 2], stride=[1, 3], padding=1, dilation=2, groups=3)": lambda x, w: torch.nn.functional.conv2d(
        x, w, stride=(1, 3), padding=1, dilation=2, groups=3
    ),
    "conv2d(9, 3, groups=3)": lambda x, w: torch.nn.functional.conv2d(x, w, padding=1, groups=3),
    'conv2d(4, 5, padding="valid")': lambda x, w: torch.nn.functional.conv2d(x, w),
    "max_pool(3, stride=2)": lambda x, w: torch.nn.functional.max_pool2d(x, 3, 2, 1),
    'max_pool(2, padding="valid")': lambda x, w: torch.nn.functional.max_pool2d(x, 2),
    "avg_pool(3, stride=2)": lambda x, w: torch.nn.functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "avg_pool(2)": lambda x, w: torch.nn.functional.avg_pool2d(x, 2, ceil_mode=True),
    "upsample(3)": lambda x, w: torch.nn.functional.interpolate(x, scale_factor=3),
}


@pytest.mark.parametrize("channels", [6, 9])  # few enough for onnxruntime to read them where they lie, and not
@pytest.mark.parametrize("expression", SAME)
def test_is_what_torch_computes_and_so_are_its_gradients(expression: str, channels: int) -> None:
    rng, graph = np.random.default_rng(0), graph_of(expression, f"height, width, {channels}")
    x = rng.standard_normal((2, 11, 9, channels)).astype(np.float32)
    weights = {p.path: rng.standard_normal(p.type.shape({})).astype(np.float32) for p in graph.parameters}
    theirs = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    w = [torch.tensor(a.transpose(3, 2, 0, 1), requires_grad=True) for a in weights.values()]
    want = SAME[expression](theirs, *(w or [None]))
    above = rng.standard_normal(want.shape).astype(np.float32)
    want.backward(torch.tensor(above))

    run = lower(graph, Policy())
    got, back = jax.vjp(lambda p, x: run(p, {"x": x})["y"], weights, x)
    assert relative(got, want.detach().numpy().transpose(0, 2, 3, 1)) < 1e-5
    dp, dx = back(above.transpose(0, 2, 3, 1))
    assert relative(dx, theirs.grad.numpy().transpose(0, 2, 3, 1)) < 1e-5
    for name, own in zip(weights, w):
        assert relative(dp[name], own.grad.numpy().transpose(2, 3, 1, 0)) < 1e-5
    exported = onnx_run(onnx_lower(graph, weights.__getitem__), {"x": x})["y"]
    assert relative(exported, np.asarray(got)) < 1e-5


def test_of_equal_cells_one_has_the_gradient() -> None:
    """The first, as XLA's own rule has it on other platforms; none is counted twice."""
    rng, graph = np.random.default_rng(0), graph_of("max_pool(3, stride=2)")
    x = rng.integers(0, 3, (2, 11, 9, 6)).astype(np.float32)
    above = rng.standard_normal((2, 6, 5, 6)).astype(np.float32)
    run = {p: lower(graph, Policy(platform=p)) for p in ("cpu", "gpu")}
    mine, theirs = (jax.vjp(lambda x, f=f: f({}, {"x": x})["y"], x)[1](above)[0] for f in run.values())
    np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_relu_is_the_maximum_and_has_its_gradient_everywhere() -> None:
    x = np.array([[-np.inf, -1.0, -0.0, 0.0, 1e-30, 2.0, np.inf, np.nan]], np.float32)
    graph = graph_of("relu", "8")
    for platform in ("cpu", "gpu"):
        run = lower(graph, Policy(platform=platform))
        y, back = jax.vjp(lambda x, f=run: f({}, {"x": x})["y"], x)
        np.testing.assert_array_equal(y, np.maximum(x, 0))
        np.testing.assert_array_equal(back(np.ones_like(x))[0][0, :7], [0, 0, 0, 0, 1, 1, 1])


def test_a_stack_of_images_of_few_channels_is_read_where_it_lies() -> None:
    rng, graph = np.random.default_rng(0), graph_of("conv2d(4, [3, 2], stride=[1, 2])", "time, height, width, 3")
    x = rng.standard_normal((2, 3, 11, 9, 3)).astype(np.float32)
    weights = {p.path: rng.standard_normal(p.type.shape({})).astype(np.float32) for p in graph.parameters}
    exported = onnx_lower(graph, weights.__getitem__)
    kinds = [n.op_type for n in exported.model.graph]
    assert "Transpose" not in kinds[: kinds.index("Conv")]
    want = lower(graph, Policy())(weights, {"x": x})["y"]
    assert relative(onnx_run(exported, {"x": x})["y"], np.asarray(want)) < 1e-5


def test_how_tensorflow_pads_is_said_by_numbers() -> None:
    """flax's SAME at a stride of 2 is [0, 1] on an even number of cells, and isn't "same"."""
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 6)).astype(np.float32)
    conv = nn.Conv(4, (3, 3), (2, 2), use_bias=False)
    weight = conv.init(jax.random.key(0), x)["params"]["kernel"]
    want = conv.apply({"params": {"kernel": weight}}, x)
    run = {p: lower(graph_of(f"conv2d(4, 3, stride=2{p})"), Policy()) for p in ("", ", padding=[0, 1]")}
    found = [f({"g.conv2d.weight": weight}, {"x": x})["y"] for f in run.values()]
    assert relative(found[1], want) < 1e-5 < 0.1 < relative(found[0], want)


def test_sizes_that_stay_open_are_rounded_up() -> None:
    graph = graph_of("conv2d(4, 3, stride=2) >> max_pool(2) >> conv2d(4, 5, stride=3)")
    t = graph.outputs["y"].type
    for n in range(1, 40):
        size = n
        for stride in (2, 2, 3):
            size = -(-size // stride)
        assert t.shape({"batch": 1, "height": n, "width": n}) == (1, size, size, 4)


def test_images_along_a_stream_are_each_alone_and_an_image_of_a_stream_is_not() -> None:
    frames, rows = graph_of("conv2d(4, 3)", "time, height, width, 3"), graph_of("conv2d(4, 3)", "time, width, 3")
    assert (total_reach(frames)["y"].back, total_reach(frames)["y"].ahead) == (0, 0)
    assert (total_reach(rows)["y"].back, total_reach(rows)["y"].ahead) == (None, None)
