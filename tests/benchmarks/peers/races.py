"""The rows of speed: which contenders meet, and what ours must reach."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Race:
    """One row: `aim` times the fastest of the peers. What is fastest is decided by the medians.

    new      tokens of a turn, where decoding is measured
    beside   contenders that are measured too and decide nothing
    refused  tools that don't take the model: tried, so that the figure says why
    turns    in a round: one where they are long
    every    contenders known to be slow, which run in each n-th round only
    share    of the read bandwidth (decoding) that ours must reach besides
    """

    name: str
    what: str  # "decode" or "prefill"
    ours: tuple[str, ...]
    peers: tuple[str, ...]
    aim: float
    prompt: int = 512
    new: int = 8
    beside: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    turns: int = 4
    every: dict[str, int] = field(default_factory=dict)
    share: float | None = None

    @property
    def contenders(self) -> tuple[str, ...]:
        return (*self.ours, *self.peers, *self.beside)


GEMMA2 = (
    Race(
        "decode_fp32", "decode", ("ours-f32", "ours-f32-mapped"),
        ("genai-f32", "llama-f32", "llama-f32-flash", "torch-f32", "jax-f32"),
        0.98, share=0.9, turns=10, every={"llama-f32-flash": 3, "torch-f32": 3, "jax-f32": 4},
    ),
    Race(
        "decode_int4", "decode", ("ours-int4-kv8", "ours-int4"), ("genai-int4", "llama-q4_0", "llama-q4_0-flash"), 1.15,
        every={"llama-q4_0-flash": 3},
    ),
    Race(
        "decode_int8", "decode", ("ours-int8-kv8", "ours-int8", "ours-w8"), ("llama-q8_0", "llama-q8_0-flash"), 1.15,
        every={"llama-q8_0-flash": 3},
    ),
    Race(
        "decode_int4_4k", "decode", ("ours-int4-kv8", "ours-int4"), ("genai-int4",), 1.3, prompt=4096,
        every={"ours-int4": 3},
    ),
    Race(
        "prefill_fp32", "prefill", ("ours-f32",), ("genai-f32", "torch-f32", "llama-f32", "jax-f32"),
        1.05, turns=8, every={"llama-f32": 8, "torch-f32": 8},
    ),
    Race(
        "prefill_int8", "prefill", ("ours-int8",),
        ("genai-f32", "torch-f32", "genai-int4", "llama-q4_0", "llama-q8_0"), 2.0,
        every={"torch-f32": 4, "genai-int4": 2, "llama-q8_0": 4, "llama-q4_0": 2},
    ),
)  # fmt: skip

SLOW = {"deepmind-f32": 3, "deepmind-torch-f32": 3, "jax-f32": 3, "ours-f32-mapped": 3, "ours-int4-kv8": 3}
NO_TOOL = ("genai-f32", "llama-f32")
PUBLIC = ("torch-f32", "deepmind-f32", "deepmind-torch-f32")

RECURRENTGEMMA = (
    Race(
        "decode_fp32", "decode", ("ours-f32", "ours-f32-mapped"), PUBLIC, 1.3,
        beside=("jax-f32",), refused=NO_TOOL, share=0.9, every=SLOW,
    ),
    Race("decode_int4", "decode", ("ours-int4", "ours-int4-kv8"), ("ours-f32",), 3.0, every=SLOW),
    Race(
        "prefill_fp32", "prefill", ("ours-f32",), PUBLIC, 1.25, beside=("jax-f32",), refused=NO_TOOL, every=SLOW,
    ),
    Race(
        "prefill_fp32_4k", "prefill", ("ours-f32",), PUBLIC, 1.25, prompt=4096, beside=("jax-f32",),
        refused=NO_TOOL, turns=1, every=SLOW,
    ),
    Race("prefill_int8", "prefill", ("ours-int8",), PUBLIC, 2.5, every=SLOW),
    Race("prefill_int8_4k", "prefill", ("ours-int8",), PUBLIC, 2.5, prompt=4096, turns=1, every=SLOW),
)  # fmt: skip

RACES = {
    "gemma2": {r.name: r for r in GEMMA2},
    "recurrentgemma": {r.name: r for r in RECURRENTGEMMA},
}
