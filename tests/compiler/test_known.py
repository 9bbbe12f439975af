"""Inputs told before a graph runs: the same values, and what they alone decide computed once for a batch."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from planform.backends import reference
from planform.compiler.graphs import graph_named
from planform.compiler.ir import Graph, Input, Node, verify
from planform.compiler.ops.control import Repeat
from planform.compiler.passes.base import Pass, Trace
from planform.compiler.passes.fixed_interpolation import FixedInterpolation
from planform.compiler.passes.known import known
from planform.compiler.passes.map_first import MapFirst
from planform.compiler.text import equal, from_text, to_text
from planform.compiler.types import Dim
from planform.runtime.probe import probe_parameters
from planform.spec import load, load_text

POINTS = np.random.default_rng(0).uniform(size=(20, 2)).astype(np.float32)

OTHER = """
planform: 1
model: other
dims: {axes: 2, rows: 3, columns: 4, features: 5, width: 6, kin: 4}
graphs:
  field:
    inputs: {coords: "float[batch, points, axes]", latent: "float[batch, rows, columns, features]"}
    outputs: [signal, other, total, along]
    body: |
      z = latent >> sample_grid(coords, mode="linear", corners=true)
      around = latent >> grid_neighbours(coords, out=kin)
      bits = coords >> binary_code(8, 8) >> linear(width)
      flat = coords >> "b p a -> b (p a)"
      far = mean(coords, points)
      signal = (z >> linear(width)) + bits + (mean(around, kin) >> linear(width)) + (far >> linear(width))
      other = flat * 2.0
      total = sum(coords)
      along = sum(coords, batch, points)
"""


def once(graph: Graph) -> list[Node]:
    """The nodes whose results have no batch."""
    batch = [n for n in graph.walk() if any(d.name == "batch" for v in n.inputs for d in v.type.dims)]
    return [n for n in graph.walk() if n not in batch and n.op.name not in ("constant", "array", "broadcast")]


def check(graph: Graph) -> Graph:
    text, trace = to_text(graph), Trace()
    found = known(graph, {"coords": POINTS}, trace)
    verify(found)
    assert to_text(graph) == text and equal(from_text(to_text(found)), found)
    assert "coords" not in [v.name for v in found.inputs] and trace.explanations
    weights, rng = probe_parameters(graph), np.random.default_rng(1)
    inputs = {v.name: rng.normal(size=v.type.shape({"batch": 3, "points": 20})) for v in graph.of_kind(Input)}
    inputs["coords"] = np.broadcast_to(POINTS, (3, *POINTS.shape))
    want = reference.run(graph, weights, inputs)
    got = reference.run(found, weights, {n: a for n, a in inputs.items() if n != "coords"})
    for name in want:
        assert_allclose(got[name], want[name], rtol=1e-12, atol=1e-12)
    return found


@pytest.mark.parametrize("graph", ["field", "fit"])
@pytest.mark.parametrize("model", ["functa", "spatial_functa"])
def test_fields_and_their_encoders(model: str, graph: str) -> None:
    found = check(graph_named(load(model, "small"), graph))
    names = [n.op.name for n in once(found)]
    # the first layer's; in the encoder that in the loop and behind it, and all five of the field before the first step
    assert names.count("linear") == (7 if graph == "fit" else 1)
    if graph == "fit":
        back = next(n for n in found.walk() if isinstance(n.op, Repeat) and n.op.reverse)
        assert "batch" in back.inputs[0].type.names
        kept = back.inputs[back.op.carries]  # type: ignore[attr-defined]
        assert kept.type.names[-2:] == ("points", "width") and "batch" not in kept.type.names
    if model == "spatial_functa":
        assert "local_coordinates" in names
        grids = [n for n in found.walk() if n.op.name in ("sample_grid", "take")]
        assert grids and not any("batch" in n.inputs[1].type.names for n in grids)  # the same cells for all


LOOPS = """
planform: 1
model: loops
dims: {axes: 2, d: 4}
graphs:
  field:
    inputs: {coords: "float[batch, points, axes]", latent: "float[batch, d]"}
    body: |
      deep = coords >> linear(d) >> (linear(d) >> tanh) ^ 3 >> linear(d, name="out")
      signal = deep + (latent >> (linear(d) + id) ^ 2)
train:
  data: signals(coords, signal)
  inner: {variable: latent, start: START, steps: STEPS, rates: 0.1, loss: "mse(field(coords, latent).signal, signal)"}
  loss: mse(field(coords, latent).signal, signal)
  optimizer: adam(1e-3)
"""


@pytest.mark.parametrize(("start", "steps", "runs"), [("0.5", 1, []), ("0.5", 2, [1]), ("zeros", 4, [3])])
def test_repetitions_and_what_goes_round_in_them(start: str, steps: int, runs: list[int]) -> None:
    """Layers of known points have no batch, whatever else goes through them has; a loop's first run stands alone."""
    text = LOOPS.replace("START", start).replace("STEPS", str(steps))
    found = check(graph_named(load_text(text, "loops.yaml"), "fit"))
    loops = [n.op.count for n in found.nodes if isinstance(n.op, Repeat) and not n.op.stacks]
    assert loops == runs
    deep = [n for n in found.walk() if isinstance(n.op, Repeat) and n.op.count == 3 and n.op.stacks]
    assert deep and not any("batch" in v.type.names for n in deep for v in (*n.inputs, *n.outputs))
    (first, *others) = [n for n in found.walk() if isinstance(n.op, Repeat) and n.op.count == 2 and n.op.stacks]
    assert first.outputs[0].type.names == ("d",) and others[-1].outputs[0].type.names == ("batch", "d")


def test_what_goes_by_places_is_repeated_first() -> None:
    found = check(graph_named(load_text(OTHER, "other.yaml"), "field"))
    names = [n.op.name for n in once(found)]
    assert {"binary_code", "linear", "mean"} <= set(names) and "rearrange" not in names
    assert found.outputs["other"].type.dims[0] == Dim.parse("batch")


SAMPLED = """
planform: 1
model: sampled
dims: {{axes: {axes}, rows: 3, columns: 2, layers: 2, features: 5}}
graphs:
  m:
    inputs: {{coords: "float[points, axes]", grid: "float[batch, {cells}, features]"}}
    body: |
      read = grid >> sample_grid(coords, mode="{mode}", corners={corners}) >> linear({out}, bias=true)
"""


def sampled(mode: str, out: int, axes: int = 2, corners: bool = False) -> Graph:
    cells = ", ".join(("rows", "columns", "layers")[:axes])
    text = SAMPLED.format(mode=mode, out=out, axes=axes, cells=cells, corners=str(corners).lower())
    return graph_named(load_text(text, "sampled.yaml"))


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("p", [FixedInterpolation(), MapFirst()], ids=lambda p: p.name)
def test_what_is_read_at_known_points_stays_the_same(p: Pass, axes: int, corners: bool) -> None:
    graph = sampled("linear", 4, axes, corners)
    points = np.random.default_rng(0).uniform(-0.2, 1.2, size=(30, axes))
    told, trace = known(graph, {"coords": points}), Trace()
    found = p(told, trace)
    verify(found)
    assert [e.outcome for e in trace.explanations] == ["fired"]
    weights = probe_parameters(graph)
    inputs = {"grid": np.random.default_rng(1).normal(size=(4, *(3, 2, 2)[:axes], 5))}
    want = reference.run(graph, weights, {**inputs, "coords": points})["read"]
    assert_allclose(reference.run(found, weights, inputs)["read"], want, rtol=1e-6, atol=1e-6)  # weights in float32


@pytest.mark.parametrize(
    ("graph", "points", "p", "why"),
    [
        (sampled("linear", 9), 30, MapFirst(), "more features would be interpolated"),
        (sampled("nearest", 9), 6, MapFirst(), "there are no more points than cells"),
        (sampled("nearest", 9), 0, MapFirst(), "how many points there are is not known"),
        (sampled("linear", 9), 0, FixedInterpolation(), "%coords comes from outside, not by `array`"),
        (sampled("nearest", 9), 30, FixedInterpolation(), "`sample_grid` has mode=nearest, not linear"),
    ],
)
def test_why_not(graph: Graph, points: int, p: Pass, why: str) -> None:
    trace = Trace()
    told = known(graph, {"coords": np.full((points, 2), 0.5)}) if points else graph
    assert p(told, trace) is told and [(e.outcome, e.reason) for e in trace.explanations] == [("near miss", why)]


def test_arrays_that_do_not_fit() -> None:
    graph = graph_named(load("functa", "small"), "field")
    for wrong in (np.zeros((20, 3)), np.zeros((1, 2, 20, 2)), np.zeros(3)):
        with pytest.raises(ValueError, match="coords"):
            known(graph, {"coords": wrong})
    with pytest.raises(KeyError):
        known(graph, {"position": POINTS})
