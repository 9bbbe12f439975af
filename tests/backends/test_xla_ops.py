"""Every op on XLA against its own meaning, on examples drawn at random; gradients against differences of it."""

from __future__ import annotations

import zlib
from typing import Any

import jax
import numpy as np
import pytest

from planform.backends.xla import EXCLUDED, RULES, Policy, lower
from planform.compiler.ir import Builder, Graph, Input
from planform.compiler.ops import OPS, At, Op
from planform.compiler.types import TensorType

from .xla_graphs import jit, relative

DRAWN = sorted(set(OPS) - {"repeat"})
Example = tuple[Op, list[tuple[TensorType, np.ndarray]]]


def example(name: str, seed: int) -> Example:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    op, inputs = OPS[name].draw(rng)
    return op, inputs


def graph_of(op: Op, types: list[TensorType]) -> Graph:
    b = Builder("example")
    found = b.emit(op, *(b.add(Input(f"x{i}", t)) for i, t in enumerate(types)))
    outs = found if isinstance(found, tuple) else (found,)
    return b.finish({f"y{i}": v for i, v in enumerate(outs)})


def reference(op: Op, types: list[TensorType], arrays: list[np.ndarray]) -> list[np.ndarray]:
    outs = op.infer(*types)
    at = At(tuple(types), (outs,) if isinstance(outs, TensorType) else tuple(outs))
    wide = [np.asarray(a, np.float64) if t.is_float else np.asarray(a, t.numpy) for t, a in zip(types, arrays)]
    found = op.reference(at, *wide)
    return [np.asarray(f) for f in (found if isinstance(found, tuple) else (found,))]


def run(policy: Policy, op: Op, types: list[TensorType], arrays: list[Any]) -> list[np.ndarray]:
    f = jit(lower(graph_of(op, types), policy))
    with jax.enable_x64(policy.compute == "f64"):
        out = f({}, {f"x{i}": a for i, a in enumerate(arrays)})
        return [np.asarray(out[k]) for k in sorted(out)]


@pytest.mark.parametrize("name", DRAWN)
def test_every_op_is_lowered_or_excluded_with_a_reason(name: str) -> None:
    assert name not in EXCLUDED or EXCLUDED[name]
    if name in RULES or name in EXCLUDED:
        return
    op, inputs = example(name, 0)
    b = Builder("decomposed")
    made = op.decompose(b, *(b.add(Input(f"x{i}", t)) for i, (t, _) in enumerate(inputs)))
    assert made is not None, f"`{name}` has neither a rule nor a decomposition"


def check(name: str, seed: int, compute: str, tolerance: float) -> None:
    op, inputs = example(name, seed)
    types = [t for t, _ in inputs]
    narrow = np.float64 if compute == "f64" else np.float32
    arrays = [a.astype(narrow) if t.is_float else a for t, a in inputs]
    found = run(Policy(compute=compute), op, types, arrays)  # type: ignore[arg-type]
    for got, want in zip(found, reference(op, types, arrays), strict=True):
        assert relative(got, want) <= tolerance, op


@pytest.mark.parametrize("name", DRAWN)
def test_float64_agrees_with_the_reference(name: str) -> None:
    for seed in range(2):
        check(name, seed, "f64", 1e-10)


@pytest.mark.parametrize("name", DRAWN)
def test_float32_agrees_with_the_reference(name: str) -> None:
    for seed in range(2, 3):
        check(name, seed, "f32", 2e-5)


# Ops whose results don't move with their float inputs, or whose gradient is defined not to be the slope.
FLAT = {"less", "less_equal", "equal", "stop", "bfloat16"}  # whose gradient is no slope
FLAT |= {"spectral_norm", "spectral_norm_training"}  # tests/runtime/test_spectral_norm.py has theirs
STILL = {"project": 1}  # the input that no gradient flows to


def slopes(op: Op, types: list[TensorType], arrays: list[np.ndarray], weights: list[np.ndarray]) -> list[Any]:
    """Central differences of sum(weights * results) along one random direction for each float input."""
    rng, step, found = np.random.default_rng(0), 1e-6, []
    for i, (t, a) in enumerate(zip(types, arrays)):
        if not t.is_float:
            found.append(None)
            continue
        direction = rng.standard_normal(a.shape)
        ends = []
        for sign in (1, -1):
            moved = [*arrays[:i], a + sign * step * direction, *arrays[i + 1 :]]
            ends.append(sum(np.sum(w * y) for w, y in zip(weights, reference(op, types, moved))))
        found.append((direction, (ends[0] - ends[1]) / (2 * step)))
    return found


@pytest.mark.parametrize("name", [n for n in DRAWN if n not in FLAT])
def test_gradients_are_the_slopes_of_the_reference(name: str) -> None:
    op, inputs = example(name, 7)
    types = [t for t, _ in inputs]
    arrays = [np.asarray(a, np.float64) if t.is_float else a for t, a in inputs]
    outs = reference(op, types, arrays)
    results = op.infer(*types)
    moving = [t.is_float for t in ((results,) if isinstance(results, TensorType) else results)]
    if not any(moving) or not any(t.is_float for t in types):
        pytest.skip("no float goes through")
    rng = np.random.default_rng(1)
    weights = [rng.standard_normal(y.shape) * m for y, m in zip(outs, moving)]
    floats = [i for i, t in enumerate(types) if t.is_float]
    with jax.enable_x64(True):
        f = lower(graph_of(op, types), Policy(compute="f64"))

        def total(*moved: Any) -> Any:
            given = {f"x{i}": a for i, a in enumerate(arrays)} | {f"x{i}": a for i, a in zip(floats, moved)}
            found = f({}, given)
            return sum((w * found[f"y{i}"]).sum() for i, (w, m) in enumerate(zip(weights, moving)) if m)

        grads = jit(jax.grad(total, argnums=tuple(range(len(floats)))))(*(arrays[i] for i in floats))
    measured = slopes(op, types, arrays, weights)
    for i, g in zip(floats, grads):
        direction, slope = measured[i]
        slope = 0.0 if STILL.get(name) == i else slope
        assert np.sum(np.asarray(g) * direction) == pytest.approx(slope, rel=1e-5, abs=1e-6), f"{op}: input {i}"
