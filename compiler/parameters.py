"""Names and first values of parameters.

A *logical* parameter belongs to one layer: `lm.layer[3].attend.query.weight`. Stacks of equal layers are
stored together under a name with a slice, `lm.layer[1:26:2].attend.query.weight`, whose leading dim runs
over layers 1, 3, 5 ... How a backend groups layers is its own choice; logical names never change, and first
values are drawn from (seed, logical name) alone, so that every grouping starts from the same numbers.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import product

import numpy as np

from .ir import Graph, Init, Weight

_SLICE = re.compile(r"\[(\d+):(\d+)(?::(\d+))?\]")


def slice_text(start: int, stop: int, step: int) -> str:
    """`[start:stop:step]`, a step of one left out."""
    return f"[{start}:{stop}]" if step == 1 else f"[{start}:{stop}:{step}]"


def stack_shape(path: str) -> tuple[int, ...]:
    """The leading dims of a stored name: `a[0:6:2].b[0:2].w` has (3, 2)."""
    return tuple(len(range(int(a), int(b), int(s or 1))) for a, b, s in _SLICE.findall(path))


def layers(path: str) -> list[str]:
    """The logical names behind a stored name, in the order of its leading dims (the last varies fastest)."""
    parts = _SLICE.split(path)
    texts, ranges = (
        parts[::4],
        [range(int(parts[i]), int(parts[i + 1]), int(parts[i + 2] or 1)) for i in range(1, len(parts), 4)],
    )
    return [
        texts[0] + "".join(f"[{i}]{t}" for i, t in zip(index, texts[1:], strict=True)) for index in product(*ranges)
    ]


def logical(path: str, index: tuple[int, ...]) -> str:
    """The logical name of one entry of a stack: `a[0:6:2].b[0:2].w` at (1, 0) is `a[2].b[0].w`.

    Where the index is longer than the name has slices, its last numbers count (the innermost repetitions);
    where it is shorter, the last slices stay.
    """
    rest = iter(index[max(0, len(index) - len(stack_shape(path))) :])

    def one(m: re.Match[str]) -> str:
        i = next(rest, None)
        return m[0] if i is None else f"[{range(int(m[1]), int(m[2]), int(m[3] or 1))[i]}]"

    return _SLICE.sub(one, path)


def gather(path: str, get: Callable[[str], np.ndarray]) -> np.ndarray:
    """The stored array of a name, from a function that gives each logical parameter."""
    shape = stack_shape(path)
    if not shape:
        return get(path)
    parts = [get(name) for name in layers(path)]
    return np.stack(parts).reshape(*shape, *parts[0].shape)


def scatter(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stored arrays split into logical parameters (views)."""
    out: dict[str, np.ndarray] = {}
    for path, array in arrays.items():
        n = len(stack_shape(path))
        flat = array.reshape(-1, *array.shape[n:]) if n else array
        for i, name in enumerate(layers(path)):
            out[name] = flat[i] if n else flat
    return out


def sample(init: Init, shape: tuple[int, ...], seed: int, name: str) -> np.ndarray:
    """First values of one logical parameter, float32, from (seed, name) alone.

    zeros, ones, constant(v); normal(std); uniform(a): U(-a, a), uniform(low, high);
    fan_in(k[, scale]): normal(0, scale / sqrt(product of the first k sizes)) (LeCun et al., 1998);
    truncated_fan_in(k[, scale]): the same, drawn again beyond two standard deviations;
    uniform_fan_in(k[, scale]): U(-a, a) of the same deviation, a = scale * sqrt(3 / product of the first k sizes);
    glorot([gain]): U(-a, a), a = gain sqrt(6 / (n + m)), where the last two sizes are inputs and outputs, n and m these
    times all others (Glorot and Bengio, 2010);
    siren(w0[, k]), siren_first(k): U(-a, a), a = sqrt(6 / n) / w0 and 1 / n for n = the product of the first k sizes,
    1 unless given (Sitzmann et al., arXiv:2006.09661, section 3.2 and supplement 1.5);
    ring(low, high): p such that exp(-softplus(p)) is the radius of a point drawn evenly from the ring between
    the two radii, 0 < low < high < 1 (Orvieto et al., arXiv:2303.06349, appendix A).
    Raises: ValueError for an unknown initialisation.
    """
    a = init.arguments
    if init.name in ("zeros", "ones", "constant"):
        value = {"zeros": 0.0, "ones": 1.0}.get(init.name, a[0] if a else 0.0)
        return np.full(shape, value, np.float32)
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest()
    rng = np.random.Generator(np.random.Philox(key=np.frombuffer(digest, np.uint64)))

    def even(bound: float) -> np.ndarray:
        found: np.ndarray = (rng.random(shape, np.float32) * 2 - 1) * np.float32(bound)
        return found

    if init.name == "normal":
        return rng.standard_normal(shape, np.float32) * np.float32(a[0] if a else 1.0)
    if init.name == "uniform" and len(a) == 2:
        return rng.random(shape, np.float32) * np.float32(a[1] - a[0]) + np.float32(a[0])
    if init.name == "uniform":
        return even(a[0] if a else 1.0)
    if init.name == "uniform_fan_in":
        k, scale = (*a, *(1.0, 1.0)[len(a) :])
        return even(scale * (3 / _fan_in(shape, k)) ** 0.5)
    if init.name == "siren":
        w0, k = (*a, *(30.0, 1.0)[len(a) :])
        return even((6 / _fan_in(shape, k)) ** 0.5 / w0)
    if init.name == "siren_first":
        return even(1 / _fan_in(shape, a[0] if a else 1))
    if init.name == "glorot":
        fans = math.prod(shape[:-2]) * sum(shape[-2:])
        return even((a[0] if a else 1.0) * (6 / fans) ** 0.5)
    if init.name in ("fan_in", "truncated_fan_in"):
        k, scale = (*a, *(1.0, 1.0)[len(a) :])
        x = rng.standard_normal(shape, np.float32)
        while init.name == "truncated_fan_in" and (far := np.abs(x) > 2).any():
            x[far] = rng.standard_normal(int(far.sum()), np.float32)
        return x * np.float32(scale / _fan_in(shape, k) ** 0.5)
    if init.name == "ring":
        low, high = a
        area = rng.random(shape) * (high**2 - low**2) + low**2
        # softplus(p) = -log(radius), so p = log(1 / radius - 1).
        return np.log(1 / np.sqrt(area) - 1).astype(np.float32)
    raise ValueError(f"no initialisation `{init.name}`")


INITS = {
    "zeros": 0, "ones": 0, "constant": 1, "normal": 1, "uniform": 2, "fan_in": 2, "truncated_fan_in": 2,
    "uniform_fan_in": 2, "glorot": 1, "siren": 2, "siren_first": 1, "ring": 2,
}  # fmt: skip
"""The initialisations, and how many numbers each takes at most."""


def _fan_in(shape: tuple[int, ...], dims: float) -> int:
    return int(np.prod(shape[: int(dims)])) or 1


def initial(parameters: Iterable[Weight], seed: int = 0) -> dict[str, np.ndarray]:
    """First values of all logical parameters (and buffers) of some stored ones."""
    out: dict[str, np.ndarray] = {}
    for p in parameters:
        shape = p.type.shape({})[p.stacked :]
        for name in layers(p.path):
            out[name] = sample(p.init, shape, seed, name)
    return out


def count(graph: Graph) -> int:
    """How many numbers a graph's parameters hold, without allocating them."""
    return sum(math.prod(p.type.shape({})) for p in graph.parameters)
