"""Graphs that hold gradients, on XLA and ONNX: repetitions that run backwards, in scans and written out."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from planform.backends import onnx
from planform.backends.reference import run
from planform.backends.xla import Policy, from_logical, lower, storage, to_logical
from planform.compiler.elaborate import elaborate
from planform.compiler.gradient import with_gradients
from planform.compiler.ir import Graph
from planform.compiler.parameters import initial
from planform.spec import load_text

from .xla_graphs import jit, relative

SPEC = """\
planform: 1
model: energies
dims: {d: 4, layers: 5}
blocks:
  layer(z): id + (linear(in) + (z >> linear(in)) >> tanh)
  twice(z): layer(z) ^ layers
graphs:
  model:
    inputs:
      x: float[batch, d]
      z: float[batch, d]
    body: |
      energy = x >> twice(z) ^ 2 >> square >> sum(d)
"""


@pytest.fixture(scope="module")
def plain() -> Graph:
    """Repetitions in a repetition, with an argument that is the same in all."""
    return elaborate(load_text(SPEC, "energies.yaml"))


@pytest.fixture(scope="module")
def graph(plain: Graph) -> Graph:
    return with_gradients(plain, "energy", ["x", "z"])


@pytest.fixture(scope="module")
def parameters(plain: Graph) -> dict[str, np.ndarray]:
    return {k: 1.5 * v for k, v in initial(plain.parameters).items()}


def given(batch: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(batch, 4)), "z": rng.normal(size=(batch, 4))}


@pytest.mark.parametrize("unroll", [None, 1, 2, 3])
@pytest.mark.parametrize("remat", ["none", "layer"])
def test_xla(graph: Graph, plain: Graph, parameters: dict[str, np.ndarray], unroll: int | None, remat: str) -> None:
    """Against the reference, and against JAX's own gradient of the graph without."""
    policy = Policy(compute="f64", unroll=unroll, remat=remat)  # type: ignore[arg-type]
    want = run(graph, parameters, given())
    with jax.enable_x64(True):
        got = jit(lower(graph, policy))(from_logical(parameters.__getitem__, graph, policy), given())
        f, stored = lower(plain, policy), from_logical(parameters.__getitem__, plain, policy)
        own = jit(jax.grad(lambda x: f(stored, x)["energy"].sum()))(given())
    for key in ("x", "z"):
        assert relative(got[f"d {key}"], want[f"d {key}"]) < 1e-10
        assert relative(own[key], want[f"d {key}"]) < 1e-10


def test_jax_differentiates_what_holds_gradients(graph: Graph, parameters: dict[str, np.ndarray]) -> None:
    """The derivative of a gradient with respect to every parameter, against differences."""
    policy = Policy(compute="f64", unroll=2)

    def total(p: dict[str, np.ndarray]) -> float:
        return float(np.sum(np.sin(run(graph, p, given())["d x"])))

    with jax.enable_x64(True):
        f = lower(graph, policy)
        stored = from_logical(parameters.__getitem__, graph, policy)
        found = to_logical(jit(jax.grad(lambda p: jax.numpy.sin(f(p, given())["d x"]).sum()))(stored))
    rng = np.random.default_rng(1)
    for path in list(parameters)[::7]:
        direction, step = rng.normal(size=parameters[path].shape), 1e-6
        ends = [total({**parameters, path: parameters[path] + s * step * direction}) for s in (1, -1)]
        assert np.sum(found[path] * direction) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-8)


def test_a_stack_is_stored_once_however_often_it_is_run_through(graph: Graph, plain: Graph) -> None:
    policy = Policy(unroll=2)
    assert set(storage(graph, policy)) == set(storage(plain, policy))


def test_onnx(graph: Graph, parameters: dict[str, np.ndarray]) -> None:
    """One file with gradients in it, for any batch."""
    lowered = onnx.lower(graph, parameters.__getitem__)
    for batch in (1, 3):
        want, got = run(graph, parameters, given(batch)), onnx.run(lowered, given(batch))
        for key in want:
            assert onnx.difference(got[key], want[key]) < 2e-5
