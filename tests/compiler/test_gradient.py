"""Gradients as nodes: those of every op against differences of its meaning, through repetitions, and of gradients."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from planform.backends.reference import run
from planform.compiler.elaborate import elaborate
from planform.compiler.gradient import EXCLUDED, gradient, with_gradients
from planform.compiler.ir import Argument, Builder, Graph, Input, stacked_dim, verify
from planform.compiler.ops import OPS
from planform.compiler.ops.contract import Op
from planform.compiler.ops.control import Repeat
from planform.compiler.ops.elementwise import Add, Mul, Sin, Tanh
from planform.compiler.passes.pipeline import CLEANUP
from planform.compiler.passes.unroll import unroll
from planform.compiler.text import equal, from_text, to_text
from planform.compiler.types import Dim, TensorType
from planform.spec import SpecError, load_text

DRAWN = sorted(set(OPS) - {"repeat"})
NO_SLOPE = {"stop", "bfloat16", "spectral_norm", "spectral_norm_training"}  # whose gradient is defined not to be it
OF_EXCLUDED = {"attend_local", "linear_soft_cross_entropy"}  # that decompose into what can't be differentiated


def example(name: str, seed: int) -> tuple[Graph, dict[str, np.ndarray]] | None:
    """A graph of one use of an op; None where no float goes through it."""
    op, drawn = OPS[name].draw(np.random.default_rng([seed, zlib.crc32(name.encode())]))
    b = Builder(name)
    xs = [b.add(Input(f"x{i}", t)) for i, (t, _) in enumerate(drawn)]
    made = b.emit(op, *xs)
    outs = {f"y{i}": v for i, v in enumerate(made if isinstance(made, tuple) else (made,)) if v.type.is_float}
    if not outs or not any(x.type.is_float for x in xs):
        return None
    arrays = {x.name: np.asarray(a, np.float64) if x.type.is_float else a for x, (_, a) in zip(xs, drawn)}
    return b.finish(outs), arrays


def slopes_agree(
    graph: Graph, given: dict[str, np.ndarray], to: list[str], of: str = "y0", tolerance: float = 1e-5
) -> None:
    """The graph's `d x` against central differences along random directions."""
    rng = np.random.default_rng(0)
    found = run(graph, {}, given)
    for x in to:
        direction, step = rng.standard_normal(given[x].shape), 1e-6
        ends = [np.sum(run(graph, {}, {**given, x: given[x] + s * step * direction})[of]) for s in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        assert np.sum(found[f"d {x}"] * direction) == pytest.approx(slope, rel=tolerance, abs=tolerance), x


def differentiated(graph: Graph, of: str = "y0") -> tuple[Graph, list[str]]:
    """The graph with the gradients that flow to its float inputs, and the names of these."""
    b = Builder.beside(graph)
    b.inputs, b.nodes = list(graph.inputs), list(graph.nodes)
    floats = [v for v in graph.inputs if v.type.is_float]
    found = gradient(b, graph.outputs[of], floats)
    flows = {v.name: g for v, g in zip(floats, found) if g is not None}
    return b.finish({**graph.outputs, **{f"d {n}": g for n, g in flows.items()}}), list(flows)


@pytest.mark.parametrize("name", sorted(set(DRAWN) - set(EXCLUDED) - NO_SLOPE - OF_EXCLUDED))
def test_gradients_of_ops_are_their_slopes(name: str) -> None:
    for seed in range(3):
        made = example(name, seed)
        if made is None:
            return
        graph, flows = differentiated(made[0])
        verify(graph)
        assert equal(from_text(to_text(graph)), graph)
        slopes_agree(graph, made[1], flows)
        still = {v.name for v in graph.inputs if v.type.is_float} - set(flows)
        for x in still:  # where nothing flows, nothing moves, but by leaps
            moved = {**made[1], x: made[1][x] + 1e-9}
            np.testing.assert_allclose(run(graph, {}, moved)["y0"], run(graph, {}, made[1])["y0"], atol=1e-8)


def test_what_can_not_be_differentiated_says_why() -> None:
    assert set(EXCLUDED) <= set(OPS) and all(len(reason) > 10 for reason in EXCLUDED.values())
    for name in [*EXCLUDED, *OF_EXCLUDED]:
        assert OPS[name].gradient is Op.gradient
        assert (OPS[name].decompose is Op.decompose) == (name in EXCLUDED)
        made = example(name, 0)
        if made is not None:
            with pytest.raises(SpecError, match="no gradient can be taken through"):
                differentiated(made[0])


@pytest.mark.parametrize(
    "name", ["div", "tanh", "linear", "contract", "softmax", "layer_norm", "sample_grid", "take", "mse"]
)
def test_gradients_of_gradients(name: str) -> None:
    made = example(name, 1)
    assert made is not None
    graph, flows = differentiated(made[0])
    x = flows[0]
    # Something that isn't linear in the gradient, so that both ways count.
    b = Builder.beside(graph)
    b.inputs, b.nodes = list(graph.inputs), list(graph.nodes)
    y = b.emit(Mul(), b.emit(Sin(), graph.outputs[f"d {x}"]), b.inputs[0] if b.inputs[0].name == x else b.inputs[1])
    twice, further = differentiated(b.finish({"y0": y}))
    verify(twice)
    assert x in further
    slopes_agree(twice, made[1], further, tolerance=1e-4)


# ---- repetitions ----

T = TensorType("f32", (Dim("batch", 2), Dim("d", 3)))
W = TensorType("f32", (Dim("d", 3),))


def repetition(count: int = 3, reverse: bool = False) -> Graph:
    """h <- tanh(h * w_i + x * sin(s)), s <- s + h * x; every h comes out too, and w_i untouched."""
    b = Builder("g")
    h, s, x = (b.add(Input(n, T)) for n in "hsx")
    w = b.add(Input("w", W.with_dims((stacked_dim(count), *W.dims))))
    inner = Builder("layer")
    hi, si, wi, xi = (inner.add(Argument(f"a{i}", t)) for i, t in enumerate((T, T, W, T)))
    new = inner.emit(Tanh(), inner.emit(Add(), inner.emit(Mul(), hi, wi), inner.emit(Mul(), xi, inner.emit(Sin(), si))))
    total = inner.emit(Add(), si, inner.emit(Mul(), new, xi))
    body = inner.finish({"0": new, "1": total, "2": new, "3": wi})
    outs = b.emit(Repeat(count, 2, 1, reverse=reverse), h, s, w, x, region=body)
    every = b.emit(OPS["mean"](), b.emit(Mul(), outs[2], outs[3]))  # type: ignore[arg-type]
    y = b.emit(Add(), b.emit(Mul(), outs[0], outs[1]), every)
    return b.finish({"y0": y})


def nested() -> Graph:
    """A repetition of repetitions, the inner one's stacks invariants of the outer one."""
    b = Builder("g")
    h = b.add(Input("h", T))
    w = b.add(Input("w", W.with_dims((stacked_dim(4), *W.dims))))
    layer = Builder("layer")
    hi, wi = layer.add(Argument("h", T)), layer.add(Argument("w", W))
    body = layer.finish({"0": layer.emit(Tanh(), layer.emit(Mul(), hi, wi)), "1": layer.emit(Sin(), hi)})
    step = Builder("step")
    hs, ws = step.add(Argument("h", T)), step.add(Argument("w", w.type))
    new, sines = step.emit(Repeat(4, 1, 1), hs, ws, region=body)
    back = step.emit(Repeat(4, 1, 1, reverse=True), new, ws, region=from_text(to_text(body)))[0]
    more = step.emit(OPS["mean"](), sines)
    region = step.finish({"0": step.emit(Add(), back, step.emit(Mul(), hs, more))})
    (y,) = b.emit(Repeat(3, 1, 0), h, w, region=region)
    return b.finish({"y0": y})


def arrays(graph: Graph) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {v.name: rng.normal(size=v.type.shape({})) for v in graph.inputs}


@pytest.mark.parametrize(
    "graph",
    [repetition(), repetition(reverse=True), repetition(1), nested()],
    ids=["onwards", "back", "once", "nested"],
)
def test_through_repetitions(graph: Graph) -> None:
    made = with_gradients(graph, "y0", [v.name for v in graph.inputs])
    verify(made)
    assert equal(from_text(to_text(made)), made)
    given = arrays(graph)
    slopes_agree(made, given, list(given))
    want = run(made, {}, given)
    for p in CLEANUP:
        made = p(made)
        verify(made)
    for key, array in run(made, {}, given).items():
        np.testing.assert_allclose(array, want[key], rtol=1e-12, atol=1e-14)
    # What isn't asked for isn't computed: with respect to the state alone, no stack of gradients comes out.
    alone = with_gradients(graph, "y0", ["h"])
    backwards = [n for n in alone.nodes if isinstance(n.op, Repeat) and "gradient" in n.origin.path]
    assert backwards and all(len(n.outputs) == n.op.carries for n in backwards)  # type: ignore[attr-defined]


def test_gradients_of_gradients_through_repetitions() -> None:
    once = with_gradients(repetition(2), "y0", ["h", "w"])
    b = Builder.beside(once)
    b.inputs, b.nodes = list(once.inputs), list(once.nodes)
    square = b.emit(OPS["square"](), once.outputs["d h"])
    twice = with_gradients(b.finish({"y0": square}), "y0", ["h", "s", "x", "w"])
    verify(twice)
    slopes_agree(twice, arrays(twice), ["h", "s", "x", "w"], tolerance=1e-4)


def test_repetitions_written_out_backwards() -> None:
    """Unrolled, a repetition that runs from the last slice is the same."""
    made = with_gradients(_with_parameters(), "y0", ["h"])
    flat = unroll(made)
    verify(flat)
    rng = np.random.default_rng(0)
    parameters = {f"l[{i}].w": rng.normal(size=3) for i in range(3)}
    given = {"h": rng.normal(size=(2, 3))}
    want, got = run(made, parameters, given), run(flat, parameters, given)
    for key in want:
        np.testing.assert_allclose(got[key], want[key], rtol=1e-12)


def _with_parameters() -> Graph:
    from planform.compiler.ir import Init, Parameter

    b = Builder("g")
    h = b.add(Input("h", T))
    stack = W.with_dims((stacked_dim(3), *W.dims))
    w = b.add(Parameter("w", stack, path="l[0:3].w", init=Init("ones"), stacked=1))
    inner = Builder("layer")
    hi, wi = inner.add(Argument("h", T)), inner.add(Argument("w", W))
    body = inner.finish({"0": inner.emit(Tanh(), inner.emit(Mul(), hi, wi))})
    return b.finish({"y0": b.emit(Repeat(3, 1, 1), h, w, region=body)[0]})


# ---- in the language ----

SPEC = """\
planform: 1
model: force
dims: {d: 3, layers: 3}
blocks:
  layer: id + (linear(in) >> tanh)
graphs:
  molecule:
    inputs:
      x: float[batch, d]
      y: float[batch, d]
    body: |
      energy = x >> layer ^ layers >> layer_norm >> square >> sum(d)
      force = BODY
    outputs: [energy, force]
"""


def language(body: str) -> Graph:
    return elaborate(load_text(SPEC.replace("BODY", body), "force.yaml"))


def test_grad_in_a_graph() -> None:
    """Minus the slope of an energy, through repeated layers and a norm that only decomposes."""
    graph = language("-grad(energy, x) + 0 * y")
    verify(graph)
    rng = np.random.default_rng(0)
    from planform.compiler.parameters import initial

    parameters = {k: v + rng.normal(size=v.shape) for k, v in initial(graph.parameters).items()}
    given = {"x": rng.normal(size=(2, 3)), "y": np.zeros((2, 3))}
    force = run(graph, parameters, given)["force"]
    direction, step = rng.normal(size=(2, 3)), 1e-6
    ends = [
        np.sum(run(graph, parameters, {**given, "x": given["x"] + s * step * direction})["energy"]) for s in (1, -1)
    ]
    assert -np.sum(force * direction) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


def test_stop_ends_a_gradient() -> None:
    graph = language("grad(x * stop(x * y), x)")
    given = {"x": np.full((1, 3), 2.0), "y": np.full((1, 3), 5.0)}
    from planform.compiler.parameters import initial

    np.testing.assert_allclose(run(graph, initial(graph.parameters), given)["force"], 10.0)


@pytest.mark.parametrize(
    "body, code, words",
    [
        ("grad(energy, y)", "PF0344", "depend"),
        ("grad(energy)", "PF0302", "two tensors"),
        ("grad(energy, 3)", "PF0301", "floats"),
        ("grad(less(x, y), x)", "PF0301", "floats"),
        ("grad(stop(energy), x)", "PF0344", "depend"),
        ("grad(cross_entropy(x, y), x)", "PF0343", "cross_entropy"),
    ],
)  # fmt: skip
def test_mistakes_are_told(body: str, code: str, words: str) -> None:
    with pytest.raises(SpecError) as error:
        language(body)
    (d,) = error.value.diagnostics
    assert d.code.startswith(code) and words in d.message + (d.help or "") and d.span is not None
