"""Damaged specs give a spec or diagnostics: never a traceback, a hang, or a memory hog."""

from __future__ import annotations

import json
import random

import pytest

from planform.spec import Diagnostics, SpecError, as_json, check_names, load, load_text, render

from .mutations import corpus, limits, mutate
from .systems import OPS


def examine(text: str) -> int:
    """Reads a text as a user's file would be, and shows what is found. The number of findings."""
    found = Diagnostics()
    try:
        spec = load_text(text, "fuzz.yaml")
        found.extend(spec.warnings)
        check_names(spec, OPS, found)
        findings = found.found
    except SpecError as error:
        findings = list(error.diagnostics)
        assert findings, "an error without a finding"
    for diagnostic in findings:
        assert render(diagnostic).encode("utf-8")
        json.dumps(as_json(diagnostic))
        span = diagnostic.span
        assert span is None or 0 <= span.start <= span.end <= len(span.source.text)
    return len(findings)


def survive(seeds: range) -> None:
    texts = corpus()
    outcomes = set()
    for seed in seeds:
        rng = random.Random(seed)
        text = mutate(rng.choice(texts), rng.choice(texts), rng)
        try:
            with limits(seconds=5, megabytes=1000):
                outcomes.add(examine(text) > 0)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}\n{text}") from error
    assert outcomes == {False, True}  # some damage is harmless, most is found


def test_mutations() -> None:
    survive(range(300))


@pytest.mark.slow
def test_many_mutations() -> None:
    survive(range(300, 5300))


def test_overrides() -> None:
    names = (
        "d",
        "dims",
        "train",
        "batch",
        "blocks",
        "layer",
        "lm",
        "sizes",
        "small",
        "x",
        "inputs",
        "weights",
        "",
        "0",
    )
    values = (
        "3",
        "null",
        "[a, b]",
        "{a: 1}",
        "'x'",
        "[",
        "{",
        "norm >> f(",
        "9" * 50,
        "",
        " ",
        "a: b",
        "~",
        "*x",
        "\t",
    )
    for seed in range(100):
        rng = random.Random(seed)
        path = ".".join(rng.choice(names) for _ in range(rng.choice([1, 1, 2, 2, 3, 5])))
        try:
            load("gemma2@small", overrides=[f"{path}{rng.choice(['=', '=', ' = ', ''])}{rng.choice(values)}"])
        except SpecError as error:
            assert all(render(d).encode("utf-8") for d in error.diagnostics)
    for text in (".".join(["train"] * 5000) + "=1", "=", "a" * 10**6, "\ud800=1", "train=" + "[" * 10**5):
        with pytest.raises(SpecError):
            load("gemma2@small", overrides=[text])


@pytest.mark.parametrize(
    "text",
    [
        "planform: 1\nmodel: m\nweights:\n" + "".join(f"  a{i}: b\n" for i in range(4000)),
        "planform: 1\nmodel: m\n" + "".join(f"key{i}: b\n" for i in range(4000)),
        "planform: 1\nmodel: m\nblocks:\n" + "".join(f"  b{i}: b{i + 1}\n" for i in range(3000)),
        "planform: 1\nmodel: m\ndims:\n" + "".join(f"  b{i}: b{i + 1} + 1\n" for i in range(2500)),
        "planform: 1\nmodel: m\nblocks:\n  a: |\n    " + "f(" * 40000,
        "planform: 1\nmodel: m\nblocks:\n  a: |\n    " + "-" * 90000 + "x",
        "planform: 1\nmodel: m\nblocks:\n  a: |\n    a" + "\n    + a" * 9000,
        "planform: 1\nmodel: m\nsharding: " + "{a: " * 20000,
        "planform: 1\nmodel: m\nsharding: " + "[" * 90000,
        "planform: 1\nmodel: " + "'" * 90000,
        "planform: 1\nmodel: m\ndims: {a: " + "9" * 90000 + "}",
        "planform: 1\nmodel: m\ndims: {a: 9^9^9^9^9^9, b: 1.5^1e9, c: 2^-1e300}",
        "planform: 1\nmodel: m\ngraphs:\n  g:\n    inputs: {}\n    body: |\n"
        + "".join(f"      a{i} = b{i}\n" for i in range(2500)),
        "x" * 10_000_000,
    ],
    ids=lambda text: text.replace("\n", " ")[19:50],
)
def test_large_and_deep(text: str) -> None:
    with limits(seconds=20, megabytes=1000):  # twenty for slow machines: what grows too fast takes minutes
        examine(text)
