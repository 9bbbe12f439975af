"""A Gemma 2 and a RecurrentGemma small enough for the reference, with windows shorter than their inputs, and their
forms."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import onnx

from planform.compiler.elaborate import elaborate
from planform.compiler.ir import Graph
from planform.compiler.parameters import initial
from planform.compiler.passes.last import last_only
from planform.compiler.passes.pack_qkv import PackQkv
from planform.compiler.passes.residual_norm import ResidualNorm
from planform.compiler.passes.stateful import stateful
from planform.compiler.passes.unroll import unroll
from planform.spec import load

WINDOW, VOCAB = 8, 50
DIMS = {"d": 32, "layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 16, "ff": 48, "vocab": VOCAB, "window": WINDOW,
        "query_scale": 16}  # fmt: skip


@cache
def gemma(**dims: int) -> Graph:
    """The whole-sequence form: [tokens, position, document] -> logits."""
    return elaborate(load("gemma2", "small", [f"{k}={v}" for k, v in {**DIMS, **dims}.items()]), "lm")


RECURRENT = {"d": 32, "lru": 48, "layers": 5, "heads": 4, "head_dim": 16, "intermediate": 96, "vocab": VOCAB,
             "window": WINDOW}  # fmt: skip


@cache
def griffin(**dims: int) -> Graph:
    """Two recurrent layers, a local attention that sees `WINDOW` + 1 keys, and two recurrent layers again."""
    return elaborate(load("recurrentgemma", "small", [f"{k}={v}" for k, v in {**RECURRENT, **dims}.items()]), "lm")


def weights(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    """Parameters by logical name, large enough that every part of the model shows in the logits."""
    rng = np.random.default_rng(seed)
    return {k: rng.normal(0, 0.3, v.shape).astype(np.float32) for k, v in initial(graph.parameters, seed).items()}


def step(graph: Graph, *, last: bool = False) -> Graph:
    return last_only(stateful(graph)) if last else stateful(graph)


def fused(graph: Graph) -> Graph:
    """With the passes whose ops have kernels of their own."""
    return ResidualNorm()(PackQkv()(unroll(graph)))


def tokens(batch: int, time: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, (batch, time)).astype(np.int32)


def decoding(graph: onnx.GraphProto) -> Counter[str]:
    """Op counts of what runs for one entry: the second branch where there are two."""
    found = Counter(n.op_type for n in graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "else_branch":
                found += decoding(attribute.g)
    return found
