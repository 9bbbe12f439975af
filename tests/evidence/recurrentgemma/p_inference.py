"""RecurrentGemma on a CPU beside what others have for it: transformers, Google DeepMind's recurrentgemma, JAX by hand.

Paired rounds on one model with random weights (184M parameters, window 512), peers at their own best settings; see
tests/benchmarks/peers. onnxruntime-genai's builder and llama.cpp don't take the model, which the figures show.
"""

from __future__ import annotations

from tests.benchmarks.peers.compare import Options, race
from tests.evidence import row
from tests.evidence.rows import Outcome


def measured(name: str) -> Outcome:
    return race(name, Options("recurrentgemma"))


@row(
    "recurrentgemma",
    "decode_fp32",
    "decoding in float32 at least 1.3 x as fast as the best of transformers and recurrentgemma (JAX, torch), and at "
    "90% of the read bandwidth",
    5,
)
def decode_fp32() -> Outcome:
    return measured("decode_fp32")


@row("recurrentgemma", "decode_int4", "decoding with 4-bit weights at least 3 x as fast as our own float32", 3)
def decode_int4() -> Outcome:
    return measured("decode_int4")


@row(
    "recurrentgemma",
    "prefill_fp32",
    "taking a prompt of 512 in float32 at least 1.25 x as fast as the best of transformers and recurrentgemma",
    5,
)
def prefill_fp32() -> Outcome:
    return measured("prefill_fp32")


@row(
    "recurrentgemma",
    "prefill_fp32_4k",
    "taking a prompt of 4,096 in float32 at least 1.25 x as fast as the best of transformers and recurrentgemma",
    6,
)
def prefill_fp32_4k() -> Outcome:
    return measured("prefill_fp32_4k")


@row(
    "recurrentgemma",
    "prefill_int8",
    "taking a prompt of 512 in int8 at least 2.5 x as fast as the best of them at any precision",
    5,
)
def prefill_int8() -> Outcome:
    return measured("prefill_int8")


@row(
    "recurrentgemma",
    "prefill_int8_4k",
    "taking a prompt of 4,096 in int8 at least 2.5 x as fast as the best of them at any precision",
    5,
)
def prefill_int8_4k() -> Outcome:
    return measured("prefill_int8_4k")
