"""Sampling: transformers' own processors keep the same tokens with the same probabilities."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from planform.runtime.errors import UserError
from planform.runtime.generation.sampling import Sampling, kept, sample, uniform

torch = pytest.importorskip("torch")
process = pytest.importorskip("transformers.generation.logits_process")

RNG = np.random.default_rng(0)


def theirs(logits: np.ndarray, how: Sampling, history: np.ndarray) -> Any:
    """The scores after transformers' processors, in the order in which `generate` puts them."""
    chain: list[Any] = []
    if how.repetition_penalty != 1:
        chain.append(process.RepetitionPenaltyLogitsProcessor(how.repetition_penalty))
    if how.temperature != 1:
        chain.append(process.TemperatureLogitsWarper(how.temperature))
    if how.top_k is not None:
        chain.append(process.TopKLogitsWarper(how.top_k))
    if how.top_p is not None and how.top_p < 1:
        chain.append(process.TopPLogitsWarper(how.top_p))
    return process.LogitsProcessorList(chain)(torch.tensor(history), torch.tensor(logits))


def marked(history: np.ndarray, vocab: int) -> np.ndarray:
    seen = np.zeros((len(history), vocab), bool)
    seen[np.arange(len(history))[:, None], history] = True
    return seen


def capped(shape: tuple[int, ...]) -> np.ndarray:
    """Logits that saturate a softcap: most of them are exactly 30 or -30."""
    return (30 * np.tanh(RNG.normal(0, 200, shape).astype(np.float32))).astype(np.float32)


LOGITS = {
    "smooth": RNG.normal(0, 4, (3, 1000)).astype(np.float32),
    "saturated": capped((3, 1000)),
    "tied": RNG.integers(-3, 3, (3, 1000)).astype(np.float32),
    "equal": np.zeros((2, 10), np.float32),
    "few": np.array([[1, 2, 2, 2, 0], [5, 5, 5, 5, 5]], np.float32),
    "peaked": np.where(np.arange(600) == 7, 80, RNG.normal(0, 1, (2, 600))).astype(np.float32),
    "forbidden": np.where(RNG.random((2, 500)) < 0.5, -np.inf, RNG.normal(0, 2, (2, 500))).astype(np.float32),
    "long tail": (-0.001 * np.arange(9000) * np.ones((2, 1))).astype(np.float32),
}  # fmt: skip
HOW = [
    Sampling(),
    Sampling(temperature=0.7),
    Sampling(top_k=1),
    Sampling(top_k=5),
    Sampling(temperature=1.7, top_k=40),
    Sampling(top_k=2000),
    Sampling(top_p=0.9),
    Sampling(top_p=0.5),
    Sampling(top_p=1e-6),
    Sampling(top_p=1.0),
    Sampling(temperature=0.3, top_k=50, top_p=0.95),
    Sampling(repetition_penalty=1.3),
    Sampling(temperature=0.8, top_k=20, top_p=0.7, repetition_penalty=0.6),
    Sampling(temperature=1.5, top_p=0.99, repetition_penalty=1.1),
]


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("how", HOW, ids=str)
def test_transformers_keeps_the_same_with_the_same_probabilities(
    name: str, how: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = LOGITS[name]
    history = RNG.integers(0, logits.shape[1], (len(logits), 12))
    got = kept(logits, how, marked(history, logits.shape[1]))
    # Which of equals top-p drops depends on a sort that isn't stable, and so on the machine; how many doesn't.
    np.testing.assert_array_equal(np.sort(got), np.sort(theirs(logits, how, history).numpy()))
    monkeypatch.setattr(torch, "sort", partial(torch.sort, stable=True))
    want = theirs(logits, how, history)
    np.testing.assert_array_equal(got, want.numpy())
    probability = torch.softmax(torch.tensor(got), -1).numpy()
    np.testing.assert_allclose(probability, torch.softmax(want, -1).numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", LOGITS)
def test_greedy_is_the_likeliest_after_the_penalty(name: str) -> None:
    logits = LOGITS[name]
    history = np.argsort(logits, -1)[:, -3:]  # the likeliest ones, so that the penalty matters
    how = Sampling(temperature=0, top_k=3, top_p=0.1, repetition_penalty=1.8)
    want = theirs(logits, Sampling(repetition_penalty=1.8), history).argmax(-1).numpy()
    np.testing.assert_array_equal(sample(logits, how, 0, marked(history, logits.shape[1])), want)


@pytest.mark.parametrize("how", [Sampling(), Sampling(temperature=0.7, top_k=6), Sampling(top_p=0.8)], ids=str)
def test_what_is_drawn_is_distributed_so(how: Sampling) -> None:
    logits = RNG.normal(0, 1.5, (1, 12)).astype(np.float32)
    scores = kept(logits, how)[0]
    want = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    drawn = np.bincount(sample(np.repeat(logits, 20_000, 0), how), minlength=12)
    assert not drawn[want == 0].any()
    chi2 = ((drawn - 20_000 * want) ** 2 / (20_000 * want).clip(1e-9))[want > 0].sum()
    assert chi2 < 40  # eleven degrees of freedom: one in 30,000


def test_a_draw_is_decided_by_seed_step_and_row() -> None:
    a = uniform(3, 5, 4)
    np.testing.assert_array_equal(a[:2], uniform(3, 5, 2))  # whatever other rows there are
    others = np.concatenate([a, uniform(3, 6, 4), uniform(4, 5, 4)])
    assert len(set(others)) == 12 and ((others >= 0) & (others < 1)).all()
    logits = LOGITS["smooth"]
    np.testing.assert_array_equal(sample(logits, Sampling(seed=1), 2), sample(logits.copy(), Sampling(seed=1), 2))


def test_a_draw_from_a_large_vocabulary_is_the_inverse_of_its_distribution() -> None:
    """Sums are taken in blocks; the result is that of one running sum."""
    logits = RNG.normal(0, 3, (2, 5000)).astype(np.float32)
    for step in range(50):
        at = uniform(0, step, 2)
        weights = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
        sums = weights.cumsum(-1)
        want = [np.searchsorted(s, a * s[-1], side="right") for s, a in zip(sums, at)]
        np.testing.assert_array_equal(sample(logits, Sampling(), step), want)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top-k"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.5}, "top-p"),
        ({"repetition_penalty": 0.0}, "repetition penalty"),
        ({"seed": -1}, "seed"),
    ],
)
def test_values_that_mean_nothing_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(**values)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_told(temperature: float) -> None:
    with pytest.raises(UserError, match="no numbers"):
        sample(np.array([[0.0, np.nan]], np.float32), Sampling(temperature=temperature))
