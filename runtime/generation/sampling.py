"""From logits to the next token of every row: penalty, temperature, top-k, top-p, and a draw.

What is kept and with what probability is what transformers' processors of the same names make of the same logits, in
their order, ties included. The arithmetic is in float32, as theirs is, so that a tie falls on the same side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..errors import UserError

FIRST = 256
"""Likeliest tokens that are looked at first for top-p; 16 times as many each time they don't suffice."""

BLOCK = 512


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    temperature         0 takes the likeliest (the smallest id of equals), whatever top_k and top_p say
    top_k               draw from so many likeliest, and from those that are as likely as the last of them
    top_p               draw from the smallest set of likeliest tokens that is at least so probable
                        (Holtzman et al., 2020)
    repetition_penalty  of tokens in the prompt or written before: positive logits are divided by it, negative ones
                        multiplied (CTRL, Keskar et al., 2019)
    seed                with step and row it decides every draw

    Raises: UserError for a value that means nothing.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"a temperature of {self.temperature:g} means nothing", help="give 0 or a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top-k is {self.top_k}, which leaves no token", help="give 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top-p is {self.top_p:g}, which is no probability", help="give more than 0, and 1 at most")
        if not 0 < self.repetition_penalty < math.inf:
            raise UserError(
                f"a repetition penalty of {self.repetition_penalty:g} means nothing",
                help="give a positive number: 1 for none, above 1 against repetition",
            )
        if not 0 <= self.seed < 2**64:
            raise UserError(f"the seed is {self.seed}", help="give a number from 0 to 2^64 - 1")


def sample(logits: np.ndarray, how: Sampling, step: int = 0, seen: np.ndarray | None = None) -> np.ndarray:
    """The next token of every row, int64 [batch]; a function of its arguments alone.

    logits  float [batch, vocab]
    step    how many tokens were drawn before
    seen    bool [batch, vocab]: tokens in the prompt or written before; needed for a penalty other than 1
    Raises: UserError for logits that are no numbers.
    """
    z = _penalised(logits, how, seen)
    if not np.isfinite(z.max(-1)).all():
        raise UserError("the model gives logits that are no numbers", help="its weights are damaged, or never trained")
    if how.temperature == 0:
        return z.argmax(-1)
    chosen = np.empty(len(z), np.int64)
    for row, (scores, at) in enumerate(zip(z, uniform(how.seed, step, len(z)), strict=True)):
        ids, left = _candidates(scores, how)
        drawn = _draw(_weights(left), at)
        chosen[row] = drawn if ids is None else ids[drawn]
    return chosen


def kept(logits: np.ndarray, how: Sampling, seen: np.ndarray | None = None) -> np.ndarray:
    """The scores that `sample` draws from, float32 [batch, vocab]: -inf for a token that can't come. Their softmax is
    the distribution."""
    out = np.full(logits.shape, -np.inf, np.float32)
    for row, scores in enumerate(_penalised(logits, how, seen)):
        ids, left = _candidates(scores, how)
        out[row, slice(None) if ids is None else ids] = left
    return out


def uniform(seed: int, step: int, batch: int) -> np.ndarray:
    """Numbers in [0, 1), one a row: row r's depends on (seed, step, r) alone."""
    counter = np.array([0, 0, 0, step], np.uint64)
    return np.random.Generator(np.random.Philox(key=np.array([seed, 0], np.uint64), counter=counter)).random(batch)


def _penalised(logits: np.ndarray, how: Sampling, seen: np.ndarray | None) -> np.ndarray:
    z = np.asarray(logits, np.float32)
    if how.repetition_penalty == 1 or seen is None:
        return z
    z = z.copy()
    at, penalty = np.nonzero(seen), np.float32(how.repetition_penalty)
    z[at] = np.where(z[at] < 0, z[at] * penalty, z[at] / penalty)
    return z


def _candidates(z: np.ndarray, how: Sampling) -> tuple[np.ndarray | None, np.ndarray]:
    """(ids in rising order, their scores) of the tokens that remain of scores [vocab]; no ids where all do. The scores
    are a copy that the caller may change."""
    ids = None
    z = z / np.float32(how.temperature or 1)
    if how.top_k is not None and how.top_k < len(z):
        ids = np.flatnonzero(z >= np.partition(z, -how.top_k)[-how.top_k])
        z = z[ids]
    if how.top_p is not None and how.top_p < 1:
        nucleus = _nucleus(z, how.top_p)
        ids, z = nucleus if ids is None else ids[nucleus], z[nucleus]
    return ids, z


def _nucleus(z: np.ndarray, top_p: float) -> np.ndarray:
    """Indices, rising, of the smallest set of likeliest scores [n] that is at least so probable. Of equals at its end
    the smaller indices are left out."""
    p = _weights(z.copy())
    p /= p.sum()
    # Summed from the least likely one up, a token is out while the sum is at most 1 - top_p. Those outside of a few
    # likeliest that hold more than top_p are out without being sorted.
    size = FIRST
    while size < len(p):
        few = np.flatnonzero(p >= np.partition(p, -size)[-size])
        rest = float(p.sum(dtype=np.float64) - p[few].sum(dtype=np.float64))
        if rest < 1 - top_p - 1e-5:
            break
        size *= 16
    else:
        few, rest = np.arange(len(p)), 0.0
    order = few[np.argsort(z[few], kind="stable")]
    below = (rest + np.cumsum(p[order], dtype=np.float64)).astype(np.float32)
    inside = below > np.float32(1 - top_p)
    inside[-1] = True
    return np.sort(order[inside])


def _weights(z: np.ndarray) -> np.ndarray:
    """Probabilities of scores [n] up to a factor, the largest 1; in place, since fresh memory costs more than they."""
    z -= z.max()
    return np.exp(z, out=z)


def _draw(weights: np.ndarray, at: float) -> int:
    """The index at which the running sum of weights [n] passes `at` of the whole, at in [0, 1)."""
    blocks = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), BLOCK), dtype=np.float64))
    target = at * blocks[-1]
    block = _passes(blocks, target)
    part = np.cumsum(weights[block * BLOCK : (block + 1) * BLOCK], dtype=np.float64)
    return block * BLOCK + _passes(part, target - (blocks[block - 1] if block else 0.0))


def _passes(sums: np.ndarray, target: float) -> int:
    """The first index whose sum is above the target; where rounding leaves none, the last that added to the sum."""
    return min(int(np.searchsorted(sums, target, side="right")), int(np.searchsorted(sums, sums[-1])))
