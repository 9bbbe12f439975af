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
    f = jax.jit(lower(graph_of(op, types), policy))
    with jax.enable_x64(policy.compute == "f64"):
        out = f({}, {f"x{i}": a for i, a in enumerate(arrays)})
        return [np.asarray(out[k]) for k in sorted(out)]


def relative(a: np.ndarray, b: np.ndarray) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return float(np.max(np.abs(a - b), initial=0) / max(np.max(np.abs(b), initial=0), 1e-30))


@pytest.mark.parametrize("name", DRAWN)
def test_every_op_is_lowered_or_excluded_with_a_reason(name: str) -> None:
    assert name not in EXCLUDED or EXCLUDED[name]
    if name in RULES or name in EXCLUDED:
        return
    op, inputs = example(name, 0)
    b = Builder("decomposed")
    made = op.decompose(b, *(b.add(Input(f"x{i}", t)) for i, (t, _) in enumerate(inputs)))
    assert made is not None, f"`{name}` has neither a rule nor a decomposition"
