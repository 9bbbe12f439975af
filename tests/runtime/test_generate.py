"""generate: every engine writes what the whole sequence says, alone and in a batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.tiny_run import tiny_graph, tiny_run

from planform.backends import reference
from planform.runtime.data import ByteTokenizer
from planform.runtime.errors import UserError
from planform.runtime.exporting import export_run
from planform.runtime.generation.decoders import Decoder
from planform.runtime.generation.model import Model, open_decoder, open_model
from planform.runtime.generation.resuming import Resuming
from planform.runtime.generation.sampling import Sampling
from planform.runtime.generation.writing import EOS, STOP, TOKENS, Rows, write
from planform.runtime.run import parameters_of_run

PROMPTS = ["a prompt that is longer than the window", "b", "0123456789" * 27 + "!", "twelve bytes"]
"""Of several lengths, one longer than a chunk of a prompt."""
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_run(tmp_path_factory.mktemp("runs") / "tiny")
    export_run(folder, folder / "onnx", positions=512)
    return folder


@pytest.fixture(scope="module")
def models(run: Path) -> dict[str, Model]:
    return {"xla": open_model(run), "onnx": open_model(run / "onnx")}


@pytest.fixture
def onnx(models: dict[str, Model]) -> Model:
    return models["onnx"]


def ids(model: Model, prompts: list[str], tokens: int, how: Sampling = GREEDY, **more: Any) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in prompts]
    for row, token in Rows(model.decoder, [model.prompt(p) for p in prompts], tokens, how, **more):
        if token is not None:
            rows[row].append(token)
    return rows


def texts(model: Model, prompts: list[str], tokens: int, how: Sampling = GREEDY, **more: Any) -> list[tuple[str, str]]:
    """(text, why it ended) of every row."""
    found: list[str] = [""] * len(prompts)
    ended: list[str] = [""] * len(prompts)
    for piece in write(model, [model.prompt(p) for p in prompts], tokens, how, **more):
        assert not ended[piece.row], "nothing comes after the last piece"
        found[piece.row] += piece.text
        ended[piece.row] = piece.ended or ""
    return list(zip(found, ended))


def test_both_engines_write_what_the_whole_sequence_says(run: Path, models: dict[str, Model]) -> None:
    """Greedy decoding is the argmax of the whole sequence, by the reference, at every entry."""
    (xla,), (onnx,) = (ids(m, PROMPTS[:1], 12) for m in models.values())
    assert xla == onnx
    prompt = ByteTokenizer().encode(PROMPTS[0])
    whole = np.concatenate([prompt, xla])[None].astype(np.int32)
    logits = reference.run(tiny_graph(), parameters_of_run(run), {"tokens": whole})["logits"][0]
    assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == xla
    assert len(set(xla)) > 2  # not one token over and over


@pytest.mark.parametrize("engine", [pytest.param("xla", marks=pytest.mark.slow), "onnx"])
def test_a_row_of_a_batch_is_what_it_is_alone(engine: str, models: dict[str, Model]) -> None:
    model, prompts = models[engine], PROMPTS[1:3] if engine == "xla" else PROMPTS
    alone = [ids(model, [p], 20)[0] for p in prompts]
    assert ids(model, prompts, 20) == alone
    assert len({tuple(row) for row in alone}) == len(prompts)


def test_rows_end_in_their_own_time(onnx: Model) -> None:
    """Whatever ends the others, each row writes what it writes alone."""
    free = ids(onnx, PROMPTS, 20)
    ends = {free[1][3], free[2][9]}
    rows = Rows(onnx.decoder, [onnx.prompt(p) for p in PROMPTS], 20, GREEDY, ends)
    found: list[list[int]] = [[] for _ in PROMPTS]
    for row, token in rows:
        if token is not None:
            found[row].append(token)
    cut = [next((i for i, t in enumerate(row) if t in ends), 20) for row in free]
    assert found == [row[:n] for row, n in zip(free, cut)]
    assert rows.ended == [EOS if n < 20 else TOKENS for n in cut] and EOS in rows.ended


def test_engines_draw_the_same(models: dict[str, Model]) -> None:
    how = Sampling(temperature=1.3, top_k=50, top_p=0.95, repetition_penalty=1.2, seed=4)
    xla, onnx = (ids(m, PROMPTS, 16, how) for m in models.values())
    assert xla == onnx
    assert ids(models["onnx"], PROMPTS, 16, Sampling(1.3, 50, 0.95, 1.2, seed=5)) != onnx


def test_the_prompt_is_penalised_too(onnx: Model) -> None:
    """A penalty that drives everything out that was seen: what comes was neither in the prompt nor written before."""
    prompt = onnx.prompt(PROMPTS[0])
    (found,) = ids(onnx, PROMPTS[:1], 30, Sampling(temperature=0, repetition_penalty=1e9))
    assert len(set(found)) == 30 and not set(found) & set(prompt.tolist())


def test_stop_strings_end_a_row_before_them(onnx: Model) -> None:
    free = [text for text, _ in texts(onnx, PROMPTS, 20)]
    stop = free[0][5:8]
    for i, (text, why) in enumerate(texts(onnx, PROMPTS, 20, stops=[stop])):
        at = free[i].find(stop)
        assert (text, why) == ((free[i][:at], STOP) if at >= 0 else (free[i], TOKENS))


def test_unchosen_ids_beyond_the_tokenizer(onnx: Model) -> None:
    """A table may have more rows than the tokenizer has tokens."""
    free = ids(onnx, PROMPTS, 12)
    limit = max(t for row in free for t in row)
    assert all(t < limit for row in ids(onnx, PROMPTS, 12, vocab=limit) for t in row)


def test_the_window_changes_at_inference(run: Path, tmp_path: Path) -> None:
    """Parameters stay; the text is that of the other window, on both engines, and rings become as large."""
    wide = open_model(run, overrides=["window=24"])
    export_run(run, tmp_path / "wide", positions=512, overrides=["window=24"])
    export_run(run, tmp_path / "narrow", positions=512)
    written = ids(wide, PROMPTS, 20)
    assert (
        ids(open_model(tmp_path / "wide"), PROMPTS, 20) == written != ids(open_model(tmp_path / "narrow"), PROMPTS, 20)
    )
    sizes = {}
    for name in ("wide", "narrow"):
        decoder: Any = open_decoder(tmp_path / name)
        decoder.start(1, 500)
        sizes[name] = sum(a.nbytes for a in decoder._session._arrays)
    # One local layer of the two: 16 more entries of keys and values, one head of 8 numbers.
    assert sizes["wide"] - sizes["narrow"] == 16 * 2 * 8 * 4


class Spy:
    """How many entries a decoder took."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.taken = decoder, 0
        self.vocab, self.engine, self.longest = decoder.vocab, decoder.engine, decoder.longest
        self.endless = decoder.endless

    def start(self, batch: int, capacity: int) -> None:
        self.decoder.start(batch, capacity)

    def feed(self, tokens: np.ndarray, count: np.ndarray) -> np.ndarray:
        self.taken += int(count.sum())
        return self.decoder.feed(tokens, count)


@pytest.mark.parametrize("engine", [pytest.param("xla", marks=pytest.mark.slow), "onnx"])
def test_a_conversation_is_read_once(engine: str, run: Path, models: dict[str, Model]) -> None:
    """What is written is what would be written if all was read again, also where the stream has to begin anew."""
    model = models[engine]
    spy = Spy(open_decoder(run if engine == "xla" else run / "onnx"))
    once = replace(model, decoder=Resuming(spy))

    def written(model: Model, prompt: bytes, tokens: int = 10) -> bytes:
        rows = Rows(model.decoder, [np.frombuffer(prompt, np.uint8)], tokens, GREEDY)
        return bytes(token for _, token in rows if token is not None)

    talk = b""
    for more in (PROMPTS[0], " and then? ", " 01234 "):
        talk += more.encode()
        said = written(once, talk)
        assert said == written(model, talk)
        assert spy.taken == len(talk) + 9  # the last token of an answer is never fed
        talk += said
    before = spy.taken
    longer = talk + b" and more than there is room for" * 3
    assert written(once, longer) == written(model, longer)
    assert spy.taken == before + len(longer) + 9
    before = spy.taken
    assert written(once, b"something else", 5) == written(model, b"something else", 5)
    assert spy.taken == before + len("something else") + 4


def test_an_interrupted_conversation_begins_anew(run: Path, onnx: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = open_decoder(run / "onnx")
    once = replace(onnx, decoder=Resuming(decoder))
    rows = iter(Rows(once.decoder, [once.prompt(PROMPTS[0])], 10, GREEDY))
    next(rows)
    with monkeypatch.context() as patch:
        feed = decoder.feed

        def interrupted(tokens: np.ndarray, count: np.ndarray) -> np.ndarray:
            feed(tokens, count)
            raise KeyboardInterrupt

        patch.setattr(decoder, "feed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(rows)
    longer = PROMPTS[0] + " and on"
    assert ids(once, [longer], 6) == ids(onnx, [longer], 6)


def test_mistakes_are_told(run: Path, onnx: Model, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prompt 2 has no token"):
        ids(onnx, ["x", ""], 4)
    with pytest.raises(UserError, match="may take 5001 tokens.*exported for 512"):
        ids(onnx, ["x"], 5000)
    with pytest.raises(UserError, match="may take 604 tokens"):
        ids(onnx, ["x" * 600], 4)
    with pytest.raises(UserError, match="the token 256, and the model knows 256"):
        list(Rows(onnx.decoder, [np.array([256])], 1, GREEDY))
    with pytest.raises(UserError, match="nothing can be set"):
        open_model(run / "onnx", overrides=["window=4"])
    with pytest.raises(UserError, match="not the folder of a training run"):
        open_model(tmp_path)
    with pytest.raises(UserError):
        open_model(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no chat template"):
        onnx.conversation([{"role": "user", "content": "hi"}])


def test_a_run_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run")
    (run / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="has no tokenizer"):
        open_model(run)
