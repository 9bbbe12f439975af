"""generate: every engine writes what the whole sequence says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.runtime.tiny_run import tiny_graph, tiny_run

from planform.backends import reference
from planform.runtime.data import ByteTokenizer
from planform.runtime.errors import UserError
from planform.runtime.exporting import export_run
from planform.runtime.generate import generate, open_decoder, prompt_tokens, sample
from planform.runtime.run import parameters_of_run

PROMPT = "a prompt that is longer than the window"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_run(tmp_path_factory.mktemp("runs") / "tiny")
    export_run(folder, folder / "onnx", positions=1024)
    return folder


def greedy(folder: Path, tokens: int) -> list[int]:
    decoder, tokenizer, _ = open_decoder(folder)
    return list(generate(decoder, prompt_tokens(PROMPT, tokenizer), tokens, temperature=0))


def test_both_engines_write_what_the_whole_sequence_says(run: Path) -> None:
    """Greedy decoding is the argmax of the whole sequence, by the reference, at every entry."""
    xla, onnx = greedy(run, 12), greedy(run / "onnx", 12)
    assert xla == onnx
    prompt = ByteTokenizer().encode(PROMPT)
    whole = np.concatenate([prompt, xla])[None].astype(np.int32)
    logits = reference.run(tiny_graph(), parameters_of_run(run), {"tokens": whole})["logits"][0]
    assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == xla
    assert len(set(xla)) > 2  # not one token over and over


def test_a_prompt_of_several_chunks(run: Path) -> None:
    """A prompt longer than one chunk is the same as the whole sequence."""
    decoder, tokenizer, _ = open_decoder(run / "onnx")
    prompt = prompt_tokens("0123456789" * 40, tokenizer)
    decoder.start(len(prompt) + 1)
    logits = decoder.feed(prompt)
    want = reference.run(tiny_graph(), parameters_of_run(run), {"tokens": prompt[None]})["logits"][0, -1]
    assert np.abs(logits - want).max() < 2e-5 * np.abs(want).max()


def test_the_seed_decides(run: Path) -> None:
    decoder, tokenizer, engine = open_decoder(run / "onnx")
    ids = prompt_tokens(PROMPT, tokenizer)
    a, b, c = (list(generate(decoder, ids, 8, temperature=1.5, seed=s)) for s in (1, 1, 2))
    assert a == b != c and engine == "onnxruntime"


def test_sampling() -> None:
    rng = np.random.default_rng(0)
    logits = np.array([0.0, 3.0, 2.0, -1.0])
    assert sample(logits, rng, 0.0, None) == 1
    assert {sample(logits, rng, 1.0, 2) for _ in range(50)} == {1, 2}
    drawn = np.bincount([sample(logits, rng, 1.0, None) for _ in range(4000)], minlength=4) / 4000
    want = np.exp(logits) / np.exp(logits).sum()
    assert np.abs(drawn - want).max() < 0.03


def test_it_stops(run: Path) -> None:
    decoder, tokenizer, _ = open_decoder(run / "onnx")
    ids = prompt_tokens(PROMPT, tokenizer)
    free = list(generate(decoder, ids, 6, temperature=0))
    stopped = list(generate(decoder, ids, 6, temperature=0, stop=free[3]))
    assert stopped == free[: free.index(free[3])]


def test_mistakes_are_told(run: Path, tmp_path: Path) -> None:
    decoder, tokenizer, _ = open_decoder(run / "onnx")
    with pytest.raises(UserError, match="no token"):
        list(generate(decoder, prompt_tokens("", tokenizer), 4))
    with pytest.raises(UserError, match="positions"):
        list(generate(decoder, prompt_tokens("x", tokenizer), 5000))
    with pytest.raises(UserError, match="not the folder of a training run"):
        open_decoder(tmp_path)
    with pytest.raises(UserError):
        open_decoder(tmp_path / "nowhere")
