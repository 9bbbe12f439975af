import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from planform.runtime.data import ByteTokenizer, JsonTokenizer, load_tokenizer
from planform.runtime.errors import UserError

TEXT = "def grüße(x):\n    return '→ 日本語 🦊' * x  # one, two, three\n" * 4


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as Hugging Face's libraries write it: byte-level BPE of 300 tokens with <bos> and <eos>."""
    folder = tmp_path_factory.mktemp("bpe")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": {"content": "<bos>"}, "eos_token": "<eos>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def streamed(tokenizer, ids) -> list[str]:
    stream = tokenizer.stream()
    return [*(stream.write(int(i)) for i in ids), stream.flush()]


@given(st.text())
def test_bytes_round_trip(text):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids.tolist() == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert "".join(streamed(tokenizer, ids)) == text


@given(st.binary())
def test_any_bytes_decode(data):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(data)
    assert bytes(ids.tolist()) == data
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_stream_holds_back_unfinished_characters(bpe):
    assert streamed(ByteTokenizer(), "a🦊".encode()) == ["a", "", "", "", "🦊", ""]
    assert streamed(ByteTokenizer(), "🦊".encode()[:3]) == ["", "", "", "\ufffd"]
    tokenizer = JsonTokenizer(bpe)
    pieces = streamed(tokenizer, tokenizer.encode("one 🐙🐙 two"))
    assert "".join(pieces) == "one 🐙🐙 two"
    assert "\ufffd" not in "".join(pieces) and "" in pieces[:-1]


def test_a_stream_keeps_the_spaces_that_a_decoder_drops_at_the_start(tmp_path):
    words = ["▁one", "▁two", "▁three"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}))
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = JsonTokenizer(tmp_path)
    assert ours.decode([0, 1, 2]) == "one two three"
    assert streamed(ours, [0, 1, 2]) == ["one", " two", " three", ""]


def test_the_saved_byte_tokenizer_is_one_that_hugging_face_reads(tmp_path):
    ByteTokenizer().save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    every = "".join(map(chr, range(0x250))) + TEXT + "🦊"
    assert theirs.encode(every).ids == list(every.encode())
    assert theirs.decode(list(every.encode())) == every
    assert isinstance(load_tokenizer(tmp_path), ByteTokenizer)


def test_json(bpe, tmp_path):
    tokenizer = load_tokenizer(bpe)
    assert isinstance(tokenizer, JsonTokenizer)
    assert (tokenizer.vocab_size, tokenizer.pad, tokenizer.bos, tokenizer.eos) == (300, 0, 1, 2)
    ids = tokenizer.encode(TEXT)
    assert len(ids) < len(TEXT.encode()) and ids.max() < tokenizer.vocab_size
    assert tokenizer.bos not in ids and tokenizer.eos not in ids
    assert tokenizer.decode([tokenizer.bos, *ids, tokenizer.eos]) == TEXT
    assert tokenizer.decode(tokenizer.encode(b"caf\xe9!")) == "caf\ufffd!"

    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert again.fingerprint == tokenizer.fingerprint
    assert (again.bos, again.eos, again.pad) == (1, 2, 0)
    assert [f.name for f in sorted(tmp_path.iterdir())] == ["tokenizer.json", "tokenizer_config.json"]


def test_load_by_name(bpe):
    assert isinstance(load_tokenizer(), ByteTokenizer)
    assert isinstance(load_tokenizer("bytes"), ByteTokenizer)
    assert isinstance(load_tokenizer(str(bpe / "tokenizer.json")), JsonTokenizer)


@pytest.mark.parametrize("content", [None, "no json", "[1]", "{}", '{"model": {"type": "Unheard"}}'])
def test_faults_are_the_users(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError) as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in error.value.message
