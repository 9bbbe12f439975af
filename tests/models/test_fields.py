"""Fields that no op knows of, written in the language: Fourier features, occupancy, learned interpolation, sound."""

from __future__ import annotations

import numpy as np
import pytest

from planform.backends import onnx
from planform.backends.reference import run
from planform.backends.xla import Policy, from_logical, lower
from planform.compiler.check import check
from planform.compiler.elaborate import elaborate
from planform.compiler.ir import verify
from planform.compiler.parameters import initial
from planform.compiler.program import program
from planform.spec import load_text

from ..backends.xla_graphs import jit, relative

FOURIER = """\
planform: 1
model: fourier_features                          # arXiv:2006.10739: frequencies are drawn once and never trained
dims: {axes: 2, channels: 3, frequencies: 16, width: 8}
params:
  directions: {shape: [axes, frequencies], init: normal(6.0)}
graphs:
  field:
    inputs:
      coords: float[batch, points, axes]
    body: |
      phase = contract(coords, directions, over=axes)
      signal = (phase >> sin >> linear(width)) + (phase >> cos >> linear(width, bias=true))
               >> relu >> linear(channels, bias=true) >> sigmoid
train:
  data: signals(coords, signal)
  loss: mse(field(coords).signal, signal)
  optimizer: adam(1e-3)
  params: field
"""

OCCUPANCY = """\
planform: 1
model: occupancy                                 # a volume's inside, from a grid of three axes; trilinear
dims: {axes: 3, layers: 2, rows: 3, columns: 4, features: 5, width: 8}
blocks:
  bce(y): maximum(id, 0) - id * y + ((abs >> neg >> exp) + 1 >> log)     # -log of the right answer's probability
graphs:
  field:
    inputs:
      coords: float[batch, points, axes]
      latent: float[batch, layers, rows, columns, features]
    body: |
      logit = latent >> sample_grid(coords, mode="linear") >> linear(width, bias=true) >> relu >> linear(1, bias=true)
      normal = grad(logit, coords)
    outputs: [logit, normal]
train:
  data: signals(coords, logit)
  inner:
    variable: latent
    start: shared
    steps: 2
    rates: 0.1
    loss: mean(field(coords, latent).logit >> bce(logit))
  loss: mean(field(coords, latent).logit >> bce(logit))
  optimizer: adam(1e-3)
params:
  shared: {shape: [layers, rows, columns, features], init: normal(0.1)}
"""

LEARNED = """\
planform: 1
model: learned_interpolation                     # weights of the four cells around from where a point lies among them
dims: {axes: 2, rows: 3, columns: 4, features: 5, neighbours: 4, width: 8}
graphs:
  field:
    inputs:
      coords: float[batch, points, axes]
      latent: float[batch, rows, columns, features]
    body: |
      around = latent >> grid_neighbours(coords, neighbours)
      weights = coords >> local_coordinates(rows, columns) >> linear(width, bias=true) >> relu
                >> linear(neighbours, bias=true) >> softmax
      signal = contract(around, weights, over=neighbours) >> linear(width) >> sine(10) >> linear(1)
"""

SOUND = """\
planform: 1
model: sound                                     # one axis, a code of the sample's index beside the interpolated latent
dims: {axes: 1, samples: 100, frames: 6, features: 5, width: 8}
graphs:
  field:
    inputs:
      coords: float[batch, points, axes]
      latent: float[batch, frames, features]
    body: |
      z = latent >> sample_grid(coords, mode="linear", corners=true)
      signal = (coords >> binary_code(samples) >> linear(width)) + (z >> linear(width)) >> sine(10) >> linear(1)
"""

SHARED = """\
planform: 1
model: shared_points                             # the same points for every signal of a batch
dims: {axes: 2, rows: 3, columns: 4, features: 5}
graphs:
  field:
    inputs:
      coords: float[height, width, axes]
      latent: float[batch, rows, columns, features]
    body: signal = latent >> sample_grid(coords, mode="linear") >> linear(1)
"""

SPECS = {"fourier": FOURIER, "occupancy": OCCUPANCY, "learned": LEARNED, "sound": SOUND, "shared": SHARED}
SIZES = {"batch": 2, "points": 7, "height": 3, "width": 4}


@pytest.mark.parametrize("name", SPECS)
def test_every_backend_means_the_same(name: str) -> None:
    spec = load_text(SPECS[name], f"{name}.yaml")
    assert not [d for d in check(spec) if d.severity == "error"]
    graph = elaborate(spec)
    verify(graph)
    parameters = initial(graph.parameters)
    rng = np.random.default_rng(0)
    given = {v.name: rng.uniform(size=v.type.shape(SIZES)) for v in graph.inputs if v.name in ("coords", "latent")}
    want = run(graph, parameters, given)
    policy = Policy()
    got = jit(lower(graph, policy))(from_logical(parameters.__getitem__, graph, policy), given)
    artefact = onnx.run(onnx.lower(graph, parameters.__getitem__), given)
    for key in want:
        assert relative(got[key], want[key]) < 1e-5 and onnx.difference(artefact[key], want[key]) < 2e-5
    if name == "occupancy":  # the surface's normal is the slope of the field
        direction, step = rng.normal(size=given["coords"].shape), 1e-6
        ends = [
            np.sum(run(graph, parameters, {**given, "coords": given["coords"] + s * step * direction})["logit"])
            for s in (1, -1)
        ]
        assert np.sum(want["normal"] * direction) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)


def test_a_start_that_is_learned() -> None:
    """The inner loop begins at a shared tensor, which the outer loss trains through the steps."""
    (update,) = program(load_text(OCCUPANCY, "occupancy.yaml")).updates
    assert "shared" in {p.path for p in update.loss.parameters}
    assert not any(p.path.startswith("inner") for p in update.loss.parameters)


def test_frequencies_stay_as_they_are() -> None:
    (update,) = program(load_text(FOURIER, "fourier.yaml")).updates
    assert update.params == ("field",)
