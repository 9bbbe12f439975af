"""The models that are compared, and what a token of them costs."""

from __future__ import annotations

from dataclasses import dataclass


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


SIZES = {
    "m300": Size(vocab=32768, d=1024, layers=12, heads=8, kv=4, head_dim=128, ff=4096, window=512),
    # The widths of Gemma 2 2B, with fewer layers and a smaller vocabulary.
    "w2b": Size(vocab=32768, d=2304, layers=6, heads=8, kv=4, head_dim=256, ff=9216, window=4096),
    # Trained here on bytes. Every matrix has a multiple of 128 rows, so that everybody's blocks fit. Ids beyond 255
    # never occur, but genai's builder takes a square table the wrong way round.
    "trained": Size(vocab=384, d=256, layers=4, heads=4, kv=2, head_dim=64, ff=1024, window=128),
    "tiny": Size(vocab=1024, d=256, layers=4, heads=4, kv=2, head_dim=64, ff=512, window=128),
}

TRAINED = "trained"
