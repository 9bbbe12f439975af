"""How far a quantised model is from the float32 one: a mean over many outputs, where equality is not to be had."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

METRICS = {
    "kl": "mean Kullback-Leibler divergence from the unquantised model's distributions, in nats",
    "rms": "root mean square of the difference over that of the unquantised model's outputs",
}


@dataclass
class Divergence:
    """Collects one output, chunk by chunk.

    metric: `kl` for logits [.., classes], `rms` for anything else; see METRICS.
    """

    metric: str
    total: float = 0.0
    weight: float = 0.0

    def add(self, want: np.ndarray, got: np.ndarray) -> None:
        """Further entries of what the unquantised model gives, and of what this one does."""
        if self.metric == "kl":
            p, q = _log_softmax(want), _log_softmax(got)
            each = (np.exp(p) * (p - q)).sum(-1)
            self.total, self.weight = self.total + float(each.sum()), self.weight + each.size
        else:
            want = want.astype(np.float64)
            self.total += float(np.square(got - want).sum())
            self.weight += float(np.square(want).sum())

    @property
    def value(self) -> float:
        """Infinite where an output is not a number."""
        ratio = self.total / self.weight if self.weight else 0.0
        found = ratio if self.metric == "kl" else ratio**0.5
        return float(max(found, 0.0)) if np.isfinite(found) else float("inf")


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    out: np.ndarray = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return out
