"""The whole check, shapes and all, on damaged copies of the specs that ship: findings, never a traceback."""

from __future__ import annotations

import random

import pytest

from planform.compiler.check import check
from planform.spec import SpecError, load_text, render, shipped

from ..spec.mutations import limits, mutate

TEXTS = [file.read_text(encoding="utf-8") for file in shipped().values()]


def survive(seeds: range) -> None:
    sizes = ("small", "2b", None)
    for seed in seeds:
        rng = random.Random(seed)
        text, size = mutate(rng.choice(TEXTS), rng.choice(TEXTS), rng), rng.choice(sizes)
        try:
            with limits(seconds=5, megabytes=2000):
                findings = check(load_text(text, "fuzz.yaml", size))
        except SpecError as error:
            findings = list(error.diagnostics)
        except Exception as error:
            raise AssertionError(f"seed {seed}, size {size}: {error!r}\n{text}") from error
        assert all(render(d) for d in findings)


def test_mutations() -> None:
    survive(range(300))


@pytest.mark.slow
def test_many_mutations() -> None:
    survive(range(300, 5300))
