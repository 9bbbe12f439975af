"""Field, inner loop and meta-gradients beside an independent NumPy float64 implementation (tests/models)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from planform.backends import onnx
from planform.backends.xla import Policy, from_logical, lower
from planform.compiler.elaborate import elaborate, elaborate_fit
from planform.compiler.passes.pipeline import optimise
from planform.spec import load
from tests.backends.xla_graphs import jit
from tests.evidence import row
from tests.models import test_functa as case
from tests.models.functa_numpy import difference, fitted, outer_loss


def _differences(
    name: str, parameters: dict[str, np.ndarray], found: dict[str, np.ndarray], coords: np.ndarray, colours: np.ndarray
) -> Iterator[float]:
    """For each parameter how far the gradient's slope along a direction is from that of finite differences."""
    rng = np.random.default_rng(3)
    for path, at in parameters.items():
        direction = rng.normal(size=at.shape)

        def loss(v: np.ndarray, path: str = path) -> float:
            moved = {**parameters, path: v}
            return outer_loss(case.field_of(name, moved), coords, colours, moved["inner.latent.rates"], 3)

        slope = difference(loss, at, direction)
        yield abs(float(np.sum(found[path] * direction)) - slope) / max(abs(slope), 1e-4)


def relative(got: Any, want: np.ndarray) -> float:
    return float(np.max(np.abs(np.asarray(got) - want)) / np.max(np.abs(want)))


@row(
    "functa",
    "parity",
    "field and three inner steps on XLA and ONNX in float32 within 1e-5 of NumPy in float64; the gradient of every "
    "parameter through the steps within 1e-4 of finite differences; functa and spatial functa",
    0.5,
)
def parity() -> tuple[Any, bool]:
    figure: dict[str, Any] = {}
    worst = {"values": 0.0, "meta-gradients": 0.0}
    for name in case.SMALL:
        spec, update = load(name, "small", case.SMALL[name]), case.update_of(name)
        assert update.inner is not None
        parameters = case.values(update.loss)
        field, rates = case.field_of(name, parameters), parameters["inner.latent.rates"]
        coords, colours = case.batch()
        types = {v.name: v.type for v in update.loss.inputs if v.name in ("coords", "signal")}
        latent = np.random.default_rng(2).normal(size=(3, *rates.shape))
        jobs = {
            "field": (elaborate(spec), {"coords": coords, "latent": latent}, "signal",
                      np.stack([field(z, x) for z, x in zip(latent, coords)])),
            "inner loop": (elaborate_fit(spec, update.inner, types), {"coords": coords, "signal": colours}, "latent",
                           fitted(field, coords, colours, rates, 3)),
        }  # fmt: skip
        for job, (graph, given, output, want) in jobs.items():
            mine = optimise(graph, "xla", "training")
            by_xla = jit(lower(mine, Policy()))(from_logical(parameters.__getitem__, mine, Policy()), given)
            by_onnx = onnx.run(onnx.lower(optimise(graph, "onnx", "training"), parameters.__getitem__), given)
            errors = {"xla": relative(by_xla[output], want), "onnx": relative(by_onnx[output], want)}
            worst["values"] = max(worst["values"], *errors.values())
            figure[f"{name}, {job}"] = {k: float(f"{e:.1e}") for k, e in errors.items()}
        _, found = case.gradients(update, parameters)
        slopes = list(_differences(name, parameters, found, coords, colours))
        worst["meta-gradients"] = max(worst["meta-gradients"], *slopes)
        figure[f"{name}, meta-gradients"] = {"parameters": len(slopes), "largest": float(f"{max(slopes):.1e}")}
    return figure, worst["values"] <= 1e-5 and worst["meta-gradients"] <= 1e-4
