"""Stop strings: wherever tokens are cut, the text ends before the first of them and is never said late or early."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers

from planform.runtime.data import ByteTokenizer, JsonTokenizer, Tokenizer
from planform.runtime.data.pieces import PieceTokenizer
from planform.runtime.errors import UserError
from planform.runtime.generation.model import Model
from planform.runtime.generation.sampling import Sampling
from planform.runtime.generation.stopping import StopStrings
from planform.runtime.generation.writing import EOS, STOP, TOKENS, write

CASES = [
    ("one two three", ["two"], "one ", "two"),
    ("aaaab", ["aab"], "aa", "aab"),
    ("abab", ["abc", "bab"], "a", "bab"),
    ("abcd", ["abcd", "bc"], "a", "bc"),  # complete first, though it begins later
    ("nothing here", ["nowhere", "x"], "nothing here", None),
    ("ends like st", ["stop"], "ends like st", None),
    ("größe 中文🙂!", ["文🙂"], "größe 中", "文🙂"),
    ("User: hi\nUser: ho", ["\nUser:"], "User: hi", "\nUser:"),
    ("x", [], "x", None),
]


@pytest.mark.parametrize(("text", "stops", "said", "found"), CASES)
def test_any_cut_says_the_same(text: str, stops: list[str], said: str, found: str | None) -> None:
    rng = random.Random(0)
    for _ in range(50):
        cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randrange(len(text))))
        held = StopStrings(stops)
        got = ""
        for a, b in zip([0, *cuts], [*cuts, len(text)]):
            got += held.write(text[a:b])
            assert said.startswith(got)
        assert (got + held.flush(), held.found) == (said, found)
        if found:
            assert held.write("more") == ""


def test_no_more_is_held_than_could_begin_a_stop_string() -> None:
    held = StopStrings(["</turn>", "\n\n"])
    said = [held.write(c) for c in "a < b </turtle\nb"]
    assert "".join(said) == "a < b </turtle\nb"
    assert said[:4] == ["a", " ", "", "< "] and said[-3:] == ["e", "", "\nb"]


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UserError, match="stop string is empty"):
        StopStrings(["a", ""])


class Script:
    """A decoder that says what it is told to, whatever it is given: each row its ids, one after the other."""

    engine = "script"
    longest = None
    endless = False

    def __init__(self, rows: list[list[int]], vocab: int) -> None:
        self.rows, self.vocab = rows, vocab
        self.fed: list[np.ndarray] = []

    def start(self, batch: int, capacity: int) -> None:
        assert batch == len(self.rows)
        self.fed = []

    def feed(self, tokens: np.ndarray, count: np.ndarray) -> np.ndarray:
        logits = np.zeros((len(self.rows), self.vocab), np.float32)
        for row, ids in enumerate(self.rows):
            logits[row, ids[len(self.fed)] if len(self.fed) < len(ids) else 0] = 1
        self.fed.append(count)
        return logits


def pieces() -> bytes:
    """A SentencePiece model that spells what it doesn't know in bytes."""
    model = io.BytesIO()
    text = Path(sentencepiece.__file__).read_text().splitlines()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=model, vocab_size=400, byte_fallback=True, minloglevel=2,
        remove_extra_whitespaces=False, model_type="bpe", normalization_rule_name="identity", add_dummy_prefix=False,
    )  # fmt: skip
    return model.getvalue()


@pytest.fixture(scope="module", params=["bytes", "byte-level", "byte fallback"])
def tokenizer(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("words")
    if request.param == "bytes":
        return ByteTokenizer()
    if request.param == "byte fallback":
        (folder / "tokenizer.model").write_bytes(pieces())
        return PieceTokenizer(folder)
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(["the quick brown fox jumps over the lazy dog"], trainer)
    made.save(str(folder / "tokenizer.json"))
    return JsonTokenizer(folder)


@pytest.mark.parametrize("stop", ["文", "🙂", "🙂\n", "ö", "ick br", "\nUser:"])
def test_stop_strings_across_tokens_and_inside_characters(tokenizer: Tokenizer, stop: str) -> None:
    text = "the quick brown fox: größe 中文 🙂\nUser: and on"
    ids = [int(i) for i in tokenizer.encode(text)]
    decoder = Script([ids, ids[: len(ids) // 2]], tokenizer.vocab_size)
    model = Model(decoder, tokenizer)
    prompt = np.asarray(tokenizer.encode("x"))
    said = ["", ""]
    last: list[Any] = [None, None]
    for piece in write(model, [prompt, prompt], len(ids), Sampling(temperature=0), [stop]):
        assert "\ufffd" not in piece.text or piece.row == 1
        said[piece.row] += piece.text
        last[piece.row] = piece.ended
        assert (text.partition(stop)[0]).startswith(said[0])
    assert (said[0], last[0]) == (text.partition(stop)[0], STOP)
    # The row that ended takes nothing more; the steps end with the last row.
    steps = next(i for i in range(len(ids) + 1) if stop in tokenizer.decode(ids[:i]))
    assert all(count[0] == (1 if i < steps else 0) for i, count in enumerate(decoder.fed))


def test_an_unfinished_character_is_said_at_the_end() -> None:
    model = Model(Script([[0xC3], list(b"ab")], 256), ByteTokenizer())
    prompt = np.frombuffer(b"x", np.uint8)
    found = list(write(model, [prompt, prompt], 1, Sampling(temperature=0)))
    assert [(p.row, p.text, p.ended) for p in found] == [
        (0, "", None), (0, "\ufffd", TOKENS), (1, "a", None), (1, "", TOKENS),
    ]  # fmt: skip


def test_what_is_held_is_said_when_the_text_ends() -> None:
    model = Model(Script([[*b"ab", 7]], 256), ByteTokenizer(), ends=frozenset([7]))
    found = list(write(model, [np.frombuffer(b"x", np.uint8)], 9, Sampling(temperature=0), ["abc"]))
    assert [(p.token, p.text, p.ended) for p in found] == [(97, "", None), (98, "", None), (None, "ab", EOS)]
