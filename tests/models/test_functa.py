"""Functa and spatial functa beside an independent NumPy implementation of the papers' formulas."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from planform.backends.onnx import difference as onnx_difference
from planform.backends.onnx import lower as onnx_lower
from planform.backends.onnx import run as onnx_run
from planform.backends.reference import run
from planform.backends.xla import Policy, from_logical, lower, to_logical
from planform.compiler.elaborate import elaborate, elaborate_fit
from planform.compiler.ir import Graph, verify
from planform.compiler.parameters import count, initial
from planform.compiler.passes.pipeline import optimise
from planform.compiler.program import Update, program
from planform.spec import load

from ..backends.xla_graphs import jit, relative
from .functa_numpy import Field, difference, fitted, outer_loss, pixels

SMALL = {"functa": ["width=12", "depth=5", "features=6", "channels=3"],
         "spatial_functa": ["width=12", "depth=5", "features=3", "rows=2", "columns=3", "channels=3"]}  # fmt: skip
SHAPE = (4, 6)  # rows and columns of pixels: not a square, so that swapped axes show


def update_of(name: str, *more: str) -> Update:
    return program(load(name, "small", [*SMALL[name], *more])).updates[0]


def values(graph: Graph) -> dict[str, np.ndarray]:
    """Parameters with every bias stirred; rates as a run has them, two of them beyond what they are clipped to."""
    rng = np.random.default_rng(0)
    found = {n: v + rng.normal(0, 0.02, v.shape) for n, v in initial(graph.parameters, 0).items()}
    rates = rng.uniform(0.005, 0.2, found["inner.latent.rates"].shape)
    rates.flat[:2] = -0.1, 1.2
    return {**found, "inner.latent.rates": rates}


def field_of(name: str, parameters: dict[str, np.ndarray]) -> Field:
    p = {n: np.asarray(v, np.float64) for n, v in parameters.items()}
    paths = ["field.first", *(f"field.sine_layer[{i}]" for i in range(3))]
    layers = [
        tuple(p[f"{at}.{k}"] for k in ("hidden.weight", "hidden.bias", "shift.weight", "shift.bias")) for at in paths
    ]
    cells = (2, 3) if name == "spatial_functa" else None
    return Field(layers, (p["field.out.weight"], p["field.out.bias"]), 10.0, cells)  # type: ignore[arg-type]


def batch(images: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    coords = np.broadcast_to(pixels(*SHAPE), (images, 24, 2))
    return coords, rng.uniform(size=(images, 24, 3))


@pytest.fixture(params=["functa", "spatial_functa"])
def name(request: Any) -> str:
    return str(request.param)


def test_the_field(name: str) -> None:
    """At given latents, on every backend; coordinates that the field was never fitted at."""
    graph = elaborate(load(name, "small", SMALL[name]))
    update = update_of(name)
    parameters = values(update.loss)
    field = field_of(name, parameters)
    rng = np.random.default_rng(2)
    latent = rng.normal(size=(3, *parameters["inner.latent.rates"].shape))
    coords = rng.uniform(size=(3, 7, 2))
    want = np.stack([field(z, x) for z, x in zip(latent, coords)])
    given = {"coords": coords, "latent": latent}
    np.testing.assert_allclose(run(graph, parameters, given)["signal"], want, rtol=1e-10, atol=1e-12)
    f = jit(lower(graph, Policy()))
    assert relative(f(from_logical(parameters.__getitem__, graph, Policy()), given)["signal"], want) < 1e-5
    lowered = onnx_lower(graph, parameters.__getitem__)
    assert onnx_difference(onnx_run(lowered, given)["signal"], want) < 1e-5


def test_the_inner_loop(name: str) -> None:
    """The fitted latents and the loss at them, by the reference, XLA and ONNX: the gradient is part of the graph."""
    spec = load(name, "small", SMALL[name])
    update = update_of(name)
    assert update.inner is not None
    parameters = values(update.loss)
    coords, colours = batch()
    given = {"coords": coords, "signal": colours}
    types = {v.name: v.type for v in update.loss.inputs if v.name in given}
    rates = parameters["inner.latent.rates"]
    for steps in (3, 5):
        want = fitted(field_of(name, parameters), coords, colours, rates, steps)
        graph = elaborate_fit(spec, update.inner, types, steps=steps)
        verify(graph)
        found = run(graph, parameters, given)
        np.testing.assert_allclose(found["latent"], want, rtol=1e-9, atol=1e-12)
        assert np.mean(found["loss"]) == pytest.approx(
            outer_loss(field_of(name, parameters), coords, colours, rates, steps)
        )
        f = jit(lower(optimise(graph, "xla", "training"), Policy()))
        assert relative(f(from_logical(parameters.__getitem__, graph, Policy()), given)["latent"], want) < 1e-5
    lowered = onnx_lower(optimise(graph, "onnx", "training"), parameters.__getitem__)
    assert onnx_difference(onnx_run(lowered, given)["latent"], want) < 2e-5


def gradients(update: Update, parameters: dict[str, np.ndarray]) -> tuple[float, dict[str, np.ndarray]]:
    coords, colours = batch()
    graph = optimise(update.loss, "xla", "training")
    with jax.enable_x64(True):
        policy = Policy(compute="f64")
        f = lower(graph, policy)
        stored = from_logical(parameters.__getitem__, graph, policy)
        loss = jit(jax.value_and_grad(lambda p: f(p, {"coords": coords, "signal": colours})["loss"]))
        value, found = loss(stored)
        return float(value), to_logical(found)


def test_the_outer_gradient_goes_through_the_steps(name: str) -> None:
    """Of every parameter, the rates among them, against differences of the NumPy implementation."""
    update = update_of(name)
    parameters = values(update.loss)
    coords, colours = batch()
    value, found = gradients(update, parameters)

    def loss(moved: dict[str, np.ndarray]) -> float:
        return outer_loss(field_of(name, moved), coords, colours, moved["inner.latent.rates"], 3)

    assert value == pytest.approx(loss(parameters), rel=1e-9)
    rng = np.random.default_rng(3)
    for path, at in parameters.items():
        direction = rng.normal(size=at.shape)
        slope = difference(lambda v, path=path: loss({**parameters, path: v}), at, direction)  # type: ignore[misc]
        assert np.sum(found[path] * direction) == pytest.approx(slope, rel=1e-4, abs=1e-8), path
    clipped = (parameters["inner.latent.rates"] < 0) | (parameters["inner.latent.rates"] > 1)
    assert clipped.any() and np.all(found["inner.latent.rates"][clipped] == 0)


def test_remat_changes_nothing_and_first_order_does(name: str) -> None:
    parameters = values(update_of(name).loss)
    value, found = gradients(update_of(name), parameters)
    again, same = gradients(update_of(name, "train.inner.remat=false"), parameters)
    assert again == pytest.approx(value, rel=1e-12)
    for path, g in found.items():
        np.testing.assert_allclose(same[path], g, rtol=1e-8, atol=1e-12)
    first, other = gradients(update_of(name, "train.inner.first_order=true"), parameters)
    assert first == pytest.approx(value, rel=1e-12)
    assert relative(other["field.out.weight"], found["field.out.weight"]) > 1e-3


def test_an_image_is_fitted_by_itself(name: str) -> None:
    """What else is in the batch doesn't matter."""
    spec, update = load(name, "small", SMALL[name]), update_of(name)
    assert update.inner is not None
    parameters = values(update.loss)
    coords, colours = batch()
    types = {v.name: v.type for v in update.loss.inputs if v.name in ("coords", "signal")}
    graph = elaborate_fit(spec, update.inner, types)
    whole = run(graph, parameters, {"coords": coords, "signal": colours})["latent"]
    one = run(graph, parameters, {"coords": coords[1:2], "signal": colours[1:2]})["latent"]
    np.testing.assert_allclose(whole[1:2], one, rtol=1e-12)


@pytest.mark.parametrize("size, numbers", [("celeba64", 4_342_275 + 128), ("cifar10", None)])
def test_sizes_of_the_paper(size: str, numbers: int | None) -> None:
    """A SIREN of width 512 and depth 15, 7,168 shifts from 128 numbers, and a rate for each of these."""
    loss = program(load("functa", size)).updates[0].loss
    d = 128 if size == "celeba64" else 1024
    siren = 2 * 512 + 512 + 13 * (512 * 512 + 512) + 512 * 3 + 3
    assert count(loss) == siren + 14 * 512 * (d + 1) + d
    assert numbers is None or count(loss) == numbers
