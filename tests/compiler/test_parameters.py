"""First values: from (seed, name) alone, and as their papers say."""

from __future__ import annotations

import numpy as np
import pytest

from planform.compiler.ir import Init
from planform.compiler.parameters import INITS, sample

SHAPE = (400, 300)


@pytest.mark.parametrize("name", INITS)
def test_the_same_for_the_same_name_and_seed(name: str) -> None:
    init = Init(name, (0.4, 0.9) if name == "ring" else ())
    first = sample(init, SHAPE, 1, "a.weight")
    assert first.shape == SHAPE and first.dtype == np.float32
    assert np.array_equal(first, sample(init, SHAPE, 1, "a.weight"))
    if name not in ("zeros", "ones", "constant"):
        assert not np.array_equal(first, sample(init, SHAPE, 2, "a.weight"))
        assert not np.array_equal(first, sample(init, SHAPE, 1, "b.weight"))


@pytest.mark.parametrize(
    "init, low, high",
    [
        (Init("uniform", (0.3,)), -0.3, 0.3),
        (Init("uniform", (0.005, 0.1)), 0.005, 0.1),
        (Init("uniform_fan_in"), -((3 / 400) ** 0.5), (3 / 400) ** 0.5),
        (Init("uniform_fan_in", (2.0, 0.3)), -0.3 * (3 / 120_000) ** 0.5, 0.3 * (3 / 120_000) ** 0.5),
        (Init("glorot", (2.0,)), -2 * (6 / 700) ** 0.5, 2 * (6 / 700) ** 0.5),  # between the fans in and out
        (Init("siren_first"), -1 / 400, 1 / 400),  # one over the fan in
        (Init("siren", (30.0,)), -((6 / 400) ** 0.5) / 30, (6 / 400) ** 0.5 / 30),
        (Init("siren", (10.0, 2.0)), -((6 / 120_000) ** 0.5) / 10, (6 / 120_000) ** 0.5 / 10),  # over two dims
    ],
)
def test_evenly_between(init: Init, low: float, high: float) -> None:
    x = sample(init, SHAPE, 0, "w").astype(np.float64)
    width = high - low
    assert low <= x.min() < low + 1e-3 * width and high - 1e-3 * width < x.max() <= high * (1 + 1e-6)
    assert x.std() == pytest.approx(width / 12**0.5, rel=1e-2)


@pytest.mark.parametrize(
    "init, std, most",
    [
        (Init("normal", (0.5,)), 0.5, None),
        (Init("fan_in"), 400**-0.5, None),
        (Init("fan_in", (2.0, 3.0)), 3 * 120_000**-0.5, None),
        (Init("truncated_fan_in"), 0.8796 * 400**-0.5, 2 * 400**-0.5),  # what is left of a normal within two deviations
        (Init("truncated_fan_in", (1.0, 3.0)), 0.8796 * 3 * 400**-0.5, 6 * 400**-0.5),
    ],
)
def test_normal(init: Init, std: float, most: float | None) -> None:
    x = sample(init, SHAPE, 0, "w")
    assert x.std() == pytest.approx(std, rel=1e-2) and abs(x.mean()) < 0.02 * std
    assert most is None or 0.99 * most < np.abs(x).max() <= most * (1 + 1e-6)
