"""SentencePiece tokenizers: a model trained here, compared with the library itself."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from planform.runtime.data import load_tokenizer
from planform.runtime.data.pieces import PieceTokenizer
from planform.runtime.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = io.BytesIO()
    text = Path(sentencepiece.__file__).read_text().splitlines()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=model, vocab_size=400, byte_fallback=True, pad_id=0, eos_id=1,
        bos_id=2, unk_id=3, user_defined_symbols=["<start_of_turn>", "<end_of_turn>"], minloglevel=2,
        split_digits=True, remove_extra_whitespaces=False, model_type="bpe", normalization_rule_name="identity",
        add_dummy_prefix=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


TEXTS = [
    "def main(self):\n    return 12345",
    "  two  spaces",
    "größe 中文 🙂",
    "<start_of_turn>user\nhi<end_of_turn>\n",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_encodes_and_decodes_as_the_library(folder: Path, text: str) -> None:
    ours, theirs = load_tokenizer(folder), sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    ids = ours.encode(text)
    assert ids.tolist() == theirs.encode(text)
    assert ours.decode(ids) == theirs.decode(ids.tolist()) == text
    stream = ours.stream()
    assert "".join(stream.write(int(i)) for i in ids) + stream.flush() == text


def test_special_ids(folder: Path) -> None:
    t = load_tokenizer(folder)
    assert (t.pad, t.eos, t.bos, t.vocab_size) == (0, 1, 2, 400)
    turn = t.token("<end_of_turn>")
    assert turn is not None and t.encode("<end_of_turn>").tolist() == [turn]
    assert t.token("<no such piece>") is None


def test_saved_it_loads_equal(folder: Path, tmp_path: Path) -> None:
    t = load_tokenizer(folder)
    t.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == t.fingerprint
    np.testing.assert_array_equal(again.encode(TEXTS[0]), t.encode(TEXTS[0]))


def test_a_damaged_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match="isn't a SentencePiece model"):
        PieceTokenizer(tmp_path)
