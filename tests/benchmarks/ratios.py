"""What a benchmark concludes from the ratios of its rounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def interval(values: Sequence[float], draws: int = 10_000) -> tuple[float, float, float]:
    """(median, low, high): the median and its 95% bootstrap interval."""
    drawn = np.random.default_rng(0).choice(np.asarray(values), (draws, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)


def judged(low: float, high: float, aim: float) -> bool | str:
    """Whether an interval reaches an aim: True, False when it lies wholly below, else "undecided"."""
    return True if low >= aim else False if high < aim else "undecided"


def together(verdicts: Sequence[bool | str]) -> bool | str:
    """All of them: False if one falls short, "undecided" if one is."""
    return False if False in verdicts else "undecided" if "undecided" in verdicts else True
