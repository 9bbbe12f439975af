"""Small graphs for the XLA tests, from the shipped Gemma 2 with tiny dims."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from planform.compiler.elaborate import elaborate, elaborate_loss
from planform.compiler.ir import Graph
from planform.compiler.parameters import initial
from planform.compiler.passes.loss_head import LossHead
from planform.compiler.types import Dim, TensorType
from planform.spec import Spec, load

DIMS = {
    "d": 8,
    "layers": 4,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 4,
    "ff": 12,
    "vocab": 16,
    "window": 4,
    "query_scale": 4,
}


def spec(**dims: int) -> Spec:
    return load("gemma2", "small", [f"{k}={v}" for k, v in {**DIMS, **dims}.items()])


def logits(**dims: int) -> Graph:
    return elaborate(spec(**dims))


def loss(**dims: int) -> Graph:
    """The next-token loss, its head fused."""
    s = spec(**dims)
    assert s.train is not None
    tokens = TensorType("i32", (Dim.parse("batch"), Dim.parse("time")))
    return LossHead()(elaborate_loss(s, s.train.values["loss"], {"tokens": tokens}))


def values(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    """Logical parameters with every scale stirred, so that norms matter."""
    rng = np.random.default_rng(seed)
    return {k: v + rng.normal(0, 0.1, v.shape) for k, v in initial(graph.parameters, seed).items()}


def tokens(batch: int = 2, time: int = 13, vocab: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, (batch, time)).astype(np.int32)


def jit(f: Any, **options: Any) -> Any:
    """jax.jit for tests: machine code as quick to make as possible."""
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0}, **options)


def relative(a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return float(np.max(np.abs(a - b), initial=0) / max(np.max(np.abs(b), initial=0), 1e-30))
