"""RecurrentGemma's training step on a CPU beside recurrentgemma's own JAX, transformers, and JAX by hand."""

from __future__ import annotations

from tests.benchmarks.peers.compare import Options
from tests.benchmarks.peers.training import train_step as step
from tests.evidence import row
from tests.evidence.rows import Outcome


@row(
    "recurrentgemma",
    "train_step",
    "a float32 training step (36M, 4 x 256) at least 1.2 x as fast as the better of recurrentgemma's JAX and "
    "transformers, and as fast as hand-written JAX given the same allocator, devices and flags; the first one, tracing "
    "and compiling included, within 20 s",
    5,
)
def train_step() -> Outcome:
    return step(Options("recurrentgemma"))
