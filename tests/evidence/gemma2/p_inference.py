"""Gemma 2 on a CPU beside the tools that others use: speed, load time, memory, and what quantisation costs.

Paired rounds on one model with random weights (222M parameters, window 512), peers at their own best settings; see
tests/benchmarks/peers. Needs the `bench` extra: a peer that isn't there is named, and its row is undecided.
"""

from __future__ import annotations

from tests.benchmarks.peers.__main__ import ROWS
from tests.benchmarks.peers.compare import Options
from tests.evidence import row
from tests.evidence.rows import Outcome


def measured(name: str) -> Outcome:
    return ROWS["gemma2"][name](Options())


@row(
    "gemma2",
    "decode_fp32",
    "decoding in float32 at least 0.98 x as fast as the best of genai, llama.cpp, transformers and JAX, and "
    "at 90% of the read bandwidth",
    8,
)
def decode_fp32() -> Outcome:
    return measured("decode_fp32")


@row(
    "gemma2",
    "decode_int4",
    "decoding with 4-bit weights at least 1.15 x as fast as the best of onnxruntime-genai and llama.cpp Q4_0",
    5,
)
def decode_int4() -> Outcome:
    return measured("decode_int4")


@row("gemma2", "decode_int8", "decoding with 8-bit weights at least 1.15 x as fast as llama.cpp Q8_0", 5)
def decode_int8() -> Outcome:
    return measured("decode_int8")


@row(
    "gemma2",
    "decode_int4_4k",
    "decoding with 4-bit weights after 4,096 tokens at least 1.3 x as fast as onnxruntime-genai",
    8,
)
def decode_int4_4k() -> Outcome:
    return measured("decode_int4_4k")


@row(
    "gemma2",
    "quantisation_error",
    "of a model trained here, the divergence of held-out next-token distributions from float32 is with our 4 bits "
    "no larger than with the best of onnxruntime-genai's and llama.cpp's; 8 bits beside it",
    9,
)
def quantisation_error() -> Outcome:
    return measured("quantisation_error")


@row("gemma2", "prefill_fp32", "taking a prompt of 512 in float32 at least 1.05 x as fast as the best peer", 7)
def prefill_fp32() -> Outcome:
    return measured("prefill_fp32")


@row(
    "gemma2", "prefill_int8", "taking a prompt of 512 in int8 at least 2 x as fast as the best peer at any precision", 8
)
def prefill_int8() -> Outcome:
    return measured("prefill_int8")


@row("gemma2", "load_memory", "seconds to the first token and peak memory no worse than the best peer's", 8)
def load_memory() -> Outcome:
    return measured("load_memory")
