"""Gemma 2's training step on a CPU beside the same step written by hand in JAX, and transformers on torch."""

from __future__ import annotations

from tests.benchmarks.peers.compare import Options
from tests.benchmarks.peers.training import train_memory as memory
from tests.benchmarks.peers.training import train_step as step
from tests.evidence import row
from tests.evidence.rows import Outcome


@row(
    "gemma2",
    "train_step",
    "a float32 training step (40M, 4 x 256) at least 1.2 x as fast as hand-written JAX given the same allocator, "
    "devices and flags, and at 80% of what its matrix products alone would take at XLA's own rate",
    6,
)
def train_step() -> Outcome:
    return step(Options())


@row(
    "gemma2",
    "train_memory",
    "training takes less memory than hand-written JAX and than torch; with a vocabulary of 256,000 the logits "
    "never exist as a whole",
    5,
)
def train_memory() -> Outcome:
    return memory(Options())
