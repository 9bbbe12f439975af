"""The models that are measured: families in sizes of our own, and what a token of them costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Size(ABC):
    """One size of a family."""

    vocab: int
    d: int
    layers: int
    heads: int
    kv: int
    head_dim: int
    ff: int
    window: int

    spec: ClassVar[str]
    """The family, as models/ has it."""
    model_type: ClassVar[str]
    """As transformers has it."""

    @property
    @abstractmethod
    def in_layers(self) -> int:
        """Entries of the layers' matrices."""

    @property
    @abstractmethod
    def windows(self) -> list[int | None]:
        """How far back each attending layer sees."""

    @property
    @abstractmethod
    def dims(self) -> dict[str, int]:
        """Those of the spec."""

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Arguments of transformers' configuration."""

    @property
    def products(self) -> int:
        """Entries of the matrices that a token goes through; the tied table counts once, as the head."""
        return self.in_layers + self.vocab * self.d

    @property
    def flops(self) -> float:
        """Of a prompt's token, the head aside: only the last token needs it."""
        return 2.0 * self.in_layers

    @property
    def attention(self) -> int:
        """Entries of the four matrices of an attention."""
        return self.d * self.head_dim * 2 * (self.heads + self.kv)

    @property
    def feed(self) -> int:
        """Entries of a gated feed-forward part's three matrices."""
        return 3 * self.d * self.ff


class Gemma2(Size):
    spec, model_type = "gemma2", "gemma2"

    @property
    def in_layers(self) -> int:
        return self.layers * (self.attention + self.feed)

    @property
    def windows(self) -> list[int | None]:
        return [None if i % 2 else self.window for i in range(self.layers)]

    @property
    def dims(self) -> dict[str, int]:
        return {"vocab": self.vocab, "d": self.d, "layers": self.layers, "heads": self.heads, "kv_heads": self.kv,
                "head_dim": self.head_dim, "ff": self.ff, "window": self.window,
                "query_scale": self.head_dim}  # fmt: skip

    @property
    def config(self) -> dict[str, Any]:
        return {
            "vocab_size": self.vocab, "hidden_size": self.d, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv, "head_dim": self.head_dim,
            "intermediate_size": self.ff, "sliding_window": self.window, "query_pre_attn_scalar": self.head_dim,
            "max_position_embeddings": 8192,
        }  # fmt: skip


class RecurrentGemma(Size):
    """The recurrence is as wide as the model (transformers can't have it otherwise); its gates have a block a head."""

    spec, model_type = "recurrentgemma", "recurrent_gemma"

    @property
    def in_layers(self) -> int:
        attending = self.layers // 3
        recurrence = 3 * self.d**2 + 2 * self.d**2 // self.heads
        return attending * self.attention + (self.layers - attending) * recurrence + self.layers * self.feed

    @property
    def windows(self) -> list[int | None]:
        return [self.window] * (self.layers // 3)

    @property
    def dims(self) -> dict[str, int]:
        return {"vocab": self.vocab, "d": self.d, "lru": self.d, "layers": self.layers, "heads": self.heads,
                "head_dim": self.head_dim, "intermediate": 2 * self.ff, "window": self.window}  # fmt: skip

    @property
    def config(self) -> dict[str, Any]:
        return {
            "vocab_size": self.vocab, "hidden_size": self.d, "lru_width": self.d, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv, "intermediate_size": 2 * self.ff,
            "attention_window_size": self.window,
        }  # fmt: skip


SIZES: dict[str, Size] = {
    "m300": Gemma2(vocab=32768, d=1024, layers=12, heads=8, kv=4, head_dim=128, ff=4096, window=512),
    # The widths of Gemma 2 2B, with fewer layers and a smaller vocabulary.
    "w2b": Gemma2(vocab=32768, d=2304, layers=6, heads=8, kv=4, head_dim=256, ff=9216, window=4096),
    # Trained here on bytes. Every matrix has a multiple of 128 rows, so that everybody's blocks fit. Ids beyond 255
    # never occur, but genai's builder takes a square table the wrong way round.
    "trained": Gemma2(vocab=384, d=256, layers=4, heads=4, kv=2, head_dim=64, ff=1024, window=128),
    "tiny": Gemma2(vocab=1024, d=256, layers=4, heads=4, kv=2, head_dim=64, ff=512, window=128),
    "t40": Gemma2(vocab=16384, d=512, layers=8, heads=8, kv=4, head_dim=64, ff=2048, window=128),
    "t40x2": Gemma2(vocab=4096, d=512, layers=2, heads=8, kv=4, head_dim=64, ff=2048, window=128),
    # A small model with Gemma's vocabulary: what its logits cost.
    "wide": Gemma2(vocab=256_000, d=256, layers=2, heads=4, kv=2, head_dim=64, ff=1024, window=128),
    "rg-m300": RecurrentGemma(vocab=32768, d=1024, layers=12, heads=8, kv=1, head_dim=128, ff=3072, window=512),
    "rg-t40": RecurrentGemma(vocab=16384, d=512, layers=9, heads=8, kv=1, head_dim=64, ff=1536, window=128),
    "rg-tiny": RecurrentGemma(vocab=1024, d=256, layers=5, heads=4, kv=1, head_dim=64, ff=512, window=128),
}

TRAINED = "trained"
