"""The models that are measured: Gemma 2 in sizes of our own, and what a token of them costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Size:
    vocab: int
    d: int
    layers: int
    heads: int
    kv: int
    head_dim: int
    ff: int
    window: int

    @property
    def products(self) -> int:
        """Entries of the matrices that a token goes through; the tied table counts once, as the head."""
        layer = self.d * self.head_dim * 2 * (self.heads + self.kv) + 3 * self.d * self.ff
        return self.layers * layer + self.vocab * self.d

    @property
    def flops(self) -> float:
        """Of a prompt's token, the head aside: only the last token needs it."""
        return 2.0 * (self.products - self.vocab * self.d)

    @property
    def dims(self) -> dict[str, int]:
        """Those of `models/gemma2.yaml`."""
        return {"vocab": self.vocab, "d": self.d, "layers": self.layers, "heads": self.heads, "kv_heads": self.kv,
                "head_dim": self.head_dim, "ff": self.ff, "window": self.window,
                "query_scale": self.head_dim}  # fmt: skip

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of transformers' Gemma2Config."""
        return {
            "vocab_size": self.vocab, "hidden_size": self.d, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv, "head_dim": self.head_dim,
            "intermediate_size": self.ff, "sliding_window": self.window, "query_pre_attn_scalar": self.head_dim,
        }  # fmt: skip


SIZES = {
    "m300": Size(vocab=32768, d=1024, layers=12, heads=8, kv=4, head_dim=128, ff=4096, window=512),
    # The widths of Gemma 2 2B, with fewer layers and a smaller vocabulary.
    "w2b": Size(vocab=32768, d=2304, layers=6, heads=8, kv=4, head_dim=256, ff=9216, window=4096),
    # Trained here on bytes. Every matrix has a multiple of 128 rows, so that everybody's blocks fit. Ids beyond 255
    # never occur, but genai's builder takes a square table the wrong way round.
    "trained": Size(vocab=384, d=256, layers=4, heads=4, kv=2, head_dim=64, ff=1024, window=128),
    "tiny": Size(vocab=1024, d=256, layers=4, heads=4, kv=2, head_dim=64, ff=512, window=128),
    "t40": Size(vocab=16384, d=512, layers=8, heads=8, kv=4, head_dim=64, ff=2048, window=128),
    "t40x2": Size(vocab=4096, d=512, layers=2, heads=8, kv=4, head_dim=64, ff=2048, window=128),
    # A small model with Gemma's vocabulary: what its logits cost.
    "wide": Size(vocab=256_000, d=256, layers=2, heads=4, kv=2, head_dim=64, ff=1024, window=128),
}

TRAINED = "trained"
