"""A bigram model over bytes: what a language model must beat to have learnt more than counting."""

from __future__ import annotations

import numpy as np

SPAN = 1 << 22
"""Bytes counted at once."""


def count_pairs(text: np.ndarray, starts: np.ndarray | None = None) -> np.ndarray:
    """How often each byte follows each: int64 [65536], at 256 * first + second.

    text    uint8 [bytes]
    starts  where documents begin: no pair reaches over these; None for one document
    """
    counts = np.zeros(1 << 16, np.int64)
    for start in range(0, len(text) - 1, SPAN):
        part = np.asarray(text[start : start + SPAN + 1]).astype(np.uint16)
        counts += np.bincount(part[:-1] * 256 + part[1:], minlength=1 << 16)
    if starts is not None:
        inner = starts[(starts > 0) & (starts < len(text))]
        across = text[inner - 1].astype(np.uint16) * 256 + text[inner]
        counts -= np.bincount(across, minlength=1 << 16)
    return counts


def bigram_bits_per_byte(train: np.ndarray, heldout: np.ndarray) -> float:
    """Bits per byte of held-out text under a bigram model counted on the training text.

    train, heldout   pair counts [65536] of `count_pairs`

    With c the counts in the training text, p(b | a) = (c(a b) + t(a) q(b)) / (c(a) + t(a)), where t(a) is how
    many different bytes followed a, and q(b) = (c(b) + 1) / (n + 256): interpolation by Witten and Bell
    (1991), method C. A byte that begins a document isn't predicted.

    Returns nan when the held-out text has no pair.
    """
    joint = train.reshape(256, 256)
    q = (joint.sum(0) + 1) / (joint.sum() + 256)
    after = joint.sum(1, keepdims=True)
    kinds = np.count_nonzero(joint, axis=1)[:, None]
    p = np.where(after > 0, (joint + kinds * q) / np.maximum(after + kinds, 1), q)
    count = heldout.sum()
    return float(-(heldout * np.log2(p.reshape(-1))).sum() / count) if count else float("nan")
