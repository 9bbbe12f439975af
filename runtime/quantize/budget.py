"""Keeping the error under a bound: the matrices that cost most of it are stored with more bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from planform.backends.onnx.quantization import Scheme
from planform.backends.onnx.quantization.products import Product

FINER = Scheme("w8", 128)

Chosen = dict[str, Scheme | None]
"""Schemes by the matrix's name; None: float32."""


def promotions(
    products: Sequence[Product], schemes: Mapping[str, Scheme], cost: Mapping[str, float]
) -> list[tuple[str, Scheme | None]]:
    """Which matrix gets more bits, in which order: by what its rounding costs in divergence for each byte that the
    next finer form is larger. All go to 8 bits before any stays float32.

    cost  the divergence with this matrix alone quantised
    """
    found: list[tuple[float, int, str, Scheme | None]] = []
    for p in {p.name: p for p in products}.values():
        now = schemes[p.name]
        finest = 4 * p.rows * p.columns
        if now.bits < FINER.bits or not now.block:
            more = max(1, FINER.bytes(p.rows, p.columns) - now.bytes(p.rows, p.columns))
            found.append((cost[p.name] / more, 0, p.name, FINER))
        left = finest - FINER.bytes(p.rows, p.columns)
        found.append((cost[p.name] / max(1, left), 1, p.name, None))
    found.sort(key=lambda f: (f[1], -f[0], f[2]))
    return [(name, scheme) for _, _, name, scheme in found]


def within(
    budget: float, steps: Sequence[tuple[str, Scheme | None]], measure: Callable[[Chosen], float], value: float
) -> tuple[Chosen, float] | None:
    """The fewest promotions, in order, whose measured divergence is within the budget; None where all of them are not
    enough. `value` is the divergence without any. There are about log2(len(steps)) measurements."""

    def chosen(n: int) -> Chosen:
        return dict(steps[:n])

    if value <= budget:
        return {}, value
    low, high = 0, len(steps)
    best = measure(chosen(high))
    if best > budget:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        value = measure(chosen(middle))
        if value <= budget:
            high, best = middle, value
        else:
            low = middle
    return chosen(high), best
