"""Weights as whole numbers times scales, with as little error in the products as possible.

A matrix [out, in] is cut into blocks of entries of one row; each block has one scale. Scales are chosen among a grid
by the squared error that they leave. With the second moments of what the matrix is multiplied by, the error of each
column is made good in the columns that come after it (GPTQ, arXiv:2210.17323), so that the products come out closer
although the weights are further off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHRINKS = tuple(float(x) for x in np.linspace(1.0, 0.7, 5))
"""Scales that are tried, as shares of the one under which the block's largest entry just fits."""

DAMPING = 0.01
"""Added to the diagonal of the moments, as a share of its mean: directions that calibration never saw."""

ROWS = 8192
"""Rows of a matrix that are rounded at once: bounds the memory for a head of a large vocabulary."""

LAZY = 32
"""Columns after which the compensation is passed on to the rest of the matrix in one product."""


@dataclass(frozen=True)
class Levels:
    """Whole numbers `low` to `high`; with `signed` a scale may be negative, which uses both ends of [-8, 7]."""

    low: int
    high: int
    signed: bool = False


INT4 = Levels(-8, 7, signed=True)
INT8 = Levels(-128, 127, signed=True)
INT7 = Levels(-63, 63)
"""What a u8 x s8 product of AVX2 can add up in pairs without saturating: 2 * 255 * 63 < 2**15."""


@dataclass(frozen=True)
class Rounded:
    """codes: int8[out, in]; scales: float32[out, blocks], of `block` entries each (the last may have fewer)."""

    codes: np.ndarray
    scales: np.ndarray
    block: int

    def dequantised(self) -> np.ndarray:
        """float32[out, in]."""
        wide = np.repeat(self.scales, self.block, 1)[:, : self.codes.shape[1]]
        return self.codes.astype(np.float32) * wide


def rounded(w: np.ndarray, levels: Levels, block: int, moments: np.ndarray | None = None) -> Rounded:
    """A matrix w [out, in] in blocks of `block` entries along its rows.

    moments: [in, in], the mean of x x^T over the inputs x of calibration; without them each weight is rounded alone.
    """
    codes = np.empty(w.shape, np.int8)
    scales = np.empty((len(w), -(-w.shape[1] // block)), np.float32)
    factor = None if moments is None else _compensation(moments)
    weights = None if moments is None else np.diag(moments).astype(np.float32)
    for start in range(0, len(w), ROWS):
        part = slice(start, start + ROWS)
        rows = np.asarray(w[part], np.float32)
        if factor is None:
            codes[part], scales[part] = _nearest(rows, levels, block)
        else:
            assert weights is not None
            codes[part], scales[part] = _compensated(rows, levels, block, factor, weights)
    return Rounded(codes, scales, block)


def _nearest(w: np.ndarray, levels: Levels, block: int) -> tuple[np.ndarray, np.ndarray]:
    n, k = w.shape
    blocks = -(-k // block)
    padded = np.zeros((n, blocks * block), np.float32)
    padded[:, :k] = w
    cut = padded.reshape(n, blocks, block)
    scales = best_scales(cut, levels)
    codes = _codes(cut, scales[..., None], levels).reshape(n, -1)[:, :k]
    return codes.astype(np.int8), scales


def best_scales(w: np.ndarray, levels: Levels, weights: np.ndarray | None = None) -> np.ndarray:
    """For w [.., entries] the scales [..] that leave the least squared error, each entry's counted by its weight."""
    largest = np.take_along_axis(w, np.abs(w).argmax(-1)[..., None], -1)[..., 0]
    ends = [(levels.low, 1.0), (levels.high, 1.0)] if levels.signed else [(levels.high, 0.0)]
    best = np.full(largest.shape, np.inf, np.float32)
    found = np.ones(largest.shape, np.float32)
    for end, signed in ends:
        # A signed scale puts the largest entry on this very end; an unsigned one fits its size.
        widest = largest / end if signed else np.abs(largest) / end
        for shrink in SHRINKS:
            scale = np.where(widest == 0, 1, widest * shrink).astype(np.float32)
            error = _codes(w, scale[..., None], levels)
            error *= scale[..., None]
            error -= w
            np.square(error, out=error)
            total = error.sum(-1) if weights is None else error @ weights
            better = total < best
            best, found = np.where(better, total, best), np.where(better, scale, found)
    return found


def _codes(w: np.ndarray, scale: np.ndarray, levels: Levels) -> np.ndarray:
    codes = w / scale
    np.rint(codes, out=codes)
    return np.clip(codes, levels.low, levels.high, out=codes)


def _compensation(moments: np.ndarray) -> np.ndarray:
    """The upper Cholesky factor U of the inverse of the moments h [in, in], U^T U = h^-1: row i says how an error in
    column i is made good by the columns after it.

    With h = R R^T, R upper (the Cholesky factor of h backwards), U is the inverse of R: no inverse of h is needed.
    """
    h = np.array(moments, np.float32)
    mean = float(np.mean(np.diag(h))) or 1.0
    damping = DAMPING
    while True:
        try:
            damped = h + np.eye(len(h), dtype=np.float32) * (damping * mean)
            return _inverse_upper(np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1])
        except np.linalg.LinAlgError:  # float32 lost the smallest directions
            damping *= 10


def _inverse_upper(r: np.ndarray) -> np.ndarray:
    """The inverse of an upper triangular matrix, by halves."""
    n = len(r)
    if n <= 64:
        return np.triu(np.linalg.inv(r))
    half = n // 2
    out = np.zeros_like(r, order="C")
    out[:half, :half] = _inverse_upper(r[:half, :half])
    out[half:, half:] = _inverse_upper(r[half:, half:])
    out[:half, half:] = -out[:half, :half] @ (r[:half, half:] @ out[half:, half:])
    return out


def _compensated(
    w: np.ndarray, levels: Levels, block: int, factor: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    n, k = w.shape
    left = np.array(w.T, np.float32)  # [in, out]: a column of the matrix lies together
    codes = np.empty((k, n), np.int8)
    scales = np.empty((-(-k // block), n), np.float32)
    if block >= k:
        scales[0] = best_scales(w, levels, weights)
    # Memory that is used again and again: fresh pages would take most of the time.
    spread, errors = np.empty_like(left), np.empty((LAZY, n), np.float32)
    for start in range(0, k, LAZY):
        stop = min(start + LAZY, k)
        here = left[start:stop]
        for i in range(stop - start):
            column = start + i
            if block < k and column % block == 0:
                end = min(column + block, k)
                scales[column // block] = best_scales(
                    np.ascontiguousarray(left[column:end].T), levels, weights[column:end]
                )
            scale = scales[column // block]
            code = _codes(here[i], scale, levels)
            codes[column] = code
            errors[i] = (here[i] - code * scale) / factor[column, column]
            if i + 1 < len(here):
                rest = spread[: len(here) - i - 1]
                here[i + 1 :] -= np.multiply(factor[column, column + 1 : stop, None], errors[i], out=rest)
        rest = spread[: k - stop]
        left[stop:] -= np.matmul(factor[start:stop, stop:].T, errors[: len(here)], out=rest)
    return np.ascontiguousarray(codes.T), np.ascontiguousarray(scales.T)
