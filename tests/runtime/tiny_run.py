"""A run's folder without the training: random parameters, so that what comes after training is tested in seconds."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp

from planform.compiler.elaborate import elaborate
from planform.compiler.ir import Graph
from planform.runtime.checkpoint import Checkpoints
from planform.runtime.data import ByteTokenizer
from planform.runtime.probe import probe_parameters
from planform.runtime.run import write_run
from planform.spec import Spec, load

TINY = ("d=16", "ff=24", "layers=2", "heads=2", "kv_heads=1", "head_dim=8", "query_scale=8", "window=8")
"""Overrides that make Gemma 2 as small as it can be with everything in it."""

RECURRENT = ("d=64", "lru=96", "intermediate=256", "layers=5", "heads=2", "head_dim=16", "window=8")
"""The same of RecurrentGemma: a layer of attention among four recurrent ones."""


def tiny_spec(more: tuple[str, ...] = ()) -> Spec:
    return load("gemma2@small", overrides=(*TINY, *more))


def tiny_graph() -> Graph:
    return elaborate(tiny_spec())


def tiny_run(folder: Path, seed: int = 0, more: tuple[str, ...] = ()) -> Path:
    """The folder of a run of one step, as `train` would leave it, with `more` overrides."""
    return write_tiny_run(folder, tiny_spec(more), (*TINY, *more), seed)


def recurrent_run(folder: Path, seed: int = 0) -> Path:
    """The same of a recurrent model."""
    return write_tiny_run(folder, load("recurrentgemma@small", overrides=RECURRENT), RECURRENT, seed)


def write_tiny_run(folder: Path, spec: Spec, overrides: tuple[str, ...], seed: int) -> Path:
    parameters = probe_parameters(elaborate(spec), seed)
    for name in parameters:
        if ".post." in name:
            parameters[name] += 8  # layers that say more than the embedding, or it would only repeat its last token
    write_run(folder, spec, overrides, {"batch": 2, "seed": 0, "data": {"length": 32}, "files": None})
    (folder / "tokenizer").mkdir()
    ByteTokenizer().save(folder / "tokenizer")
    with Checkpoints(folder) as checkpoints:
        arrays = {f"parameters/{name}": jnp.asarray(a) for name, a in parameters.items()}
        checkpoints.save(1, arrays, {"arrays": sorted(arrays)}, wait=True)
    return folder
