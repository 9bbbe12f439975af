import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from planform.runtime.data import (
    ByteTokenizer,
    Document,
    JsonTokenizer,
    Share,
    TextData,
    bigram_bits_per_byte,
    count_pairs,
    open_store,
    read_corpus,
    stdlib_corpus,
)
from planform.runtime.data import store as store_module
from planform.runtime.errors import UserError

FOUR = Share(4)
PACKAGE = str(Path(__file__).parents[2] / ".pkg")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 small documents of distinct text."""
    root = tmp_path / "text"
    for i in range(40):
        path = root / f"part{i % 3}" / f"d{i:02}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        words = (hashlib.sha256(f"{i} {j}".encode()).hexdigest()[:12] for j in range(i + 1))
        path.write_text(f"document {i}: " + " ".join(words))
    return root


def make(folder: Path, cache: Path, share: Share = FOUR, seed: int = 0, length: int = 16) -> TextData:
    return TextData(read_corpus(folder, heldout=0.2), ByteTokenizer(), length, share, cache, seed)


def text_of(row: np.ndarray) -> str:
    return bytes(row.tolist()).decode()


# Corpus


def test_the_split_is_by_name_and_complete(folder):
    corpus = read_corpus(folder, heldout=0.2)
    train, heldout = ({d.name for d in side} for side in (corpus.train, corpus.heldout))
    assert len(train) + len(heldout) == 40 and not train & heldout
    assert 2 <= len(heldout) <= 16
    assert [d.name for d in corpus.train] == sorted(train)

    (folder / "more.txt").write_text("a new document")
    grown = read_corpus(folder, heldout=0.2)
    assert heldout <= {d.name for d in grown.heldout}
    assert train <= {d.name for d in grown.train}


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_neither_side_is_empty(tmp_path, share):
    for name in "ab":
        (tmp_path / name).write_text("text")
    corpus = read_corpus(tmp_path, heldout=share)
    assert len(corpus.train) == len(corpus.heldout) == 1


def test_one_file_is_cut_at_a_line(tmp_path):
    file = tmp_path / "one.txt"
    file.write_text("".join(f"line {i}\n" for i in range(1000)))
    corpus = read_corpus(file, heldout=0.1)
    (train,), (heldout,) = corpus.train, corpus.heldout
    parts = [b"".join(d.chunks()) for d in (train, heldout)]
    assert b"".join(parts) == file.read_bytes()
    assert parts[0].endswith(b"\n") and 0.08 < len(parts[1]) / file.stat().st_size < 0.11


def test_one_file_without_lines_is_cut_at_a_character(tmp_path):
    file = tmp_path / "one.txt"
    for letters in range(10, 20):
        file.write_text("日" * letters)
        corpus = read_corpus(file, heldout=0.3)
        parts = [b"".join(d.chunks()).decode() for side in (corpus.train, corpus.heldout) for d in side]
        assert all(parts) and "".join(parts) == "日" * letters


@pytest.mark.parametrize("text", ["ab\ncdé\n" * 50, "日本🦊é" * 50, "long line 日本" * 9 + "\n" + "🦊" * 40])
def test_chunks_never_split_a_character(tmp_path, text):
    file = tmp_path / "t.txt"
    file.write_text(text)
    document = Document(file, "t.txt", 0, file.stat().st_size, 0)
    pieces = list(document.chunks(16))
    assert b"".join(pieces) == text.encode() and len(pieces) > 1
    for piece in pieces:
        piece.decode()
    lines = [piece for piece in pieces[:-1] if b"\n" in piece]
    assert all(piece.endswith(b"\n") for piece in lines)


def test_bytes_that_are_no_text_are_cut_somewhere(tmp_path):
    file = tmp_path / "t.txt"
    file.write_bytes(b"\x80" * 100)
    assert b"".join(Document(file, "t.txt", 3, 100, 0).chunks(16)) == b"\x80" * 97


def test_what_counts_as_text(tmp_path):
    for name in ("a.txt", "b.md", "sub/c.txt", ".git/d.txt", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "empty.txt").touch()

    def names(*patterns: str) -> list[str]:
        corpus = read_corpus(tmp_path, patterns) if patterns else read_corpus(tmp_path)
        return sorted(d.name for d in corpus.train + corpus.heldout)

    assert names() == ["a.txt", "b.md", "sub/c.txt"]
    assert names("*.txt") == ["a.txt", "sub/c.txt"]
    assert names("sub/*", "*.png") == ["image.png", "sub/c.txt"]


def test_the_standard_library():
    corpus = stdlib_corpus()
    names = {d.name for d in corpus.train + corpus.heldout}
    assert {"argparse.py", "json/decoder.py"} <= names
    assert not any("site-packages" in name or not name.endswith(".py") for name in names)
    assert len(corpus.heldout) > 10


def test_faults_of_paths_are_the_users(tmp_path):
    with pytest.raises(UserError, match="no text at"):
        read_corpus(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no text in"):
        read_corpus(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match=r"\*\.md"):
        read_corpus(tmp_path, ["*.md"])


# Store


def test_the_store_holds_every_document(folder, tmp_path):
    corpus = read_corpus(folder)
    reports = []
    store = open_store(corpus, ByteTokenizer(), tmp_path / "cache", lambda *r: reports.append(r))
    for documents, side in ((corpus.train, store.train), (corpus.heldout, store.heldout)):
        assert side.tokens.dtype == np.uint8 and side.documents == len(documents)
        for i, document in enumerate(documents):
            ids = side.tokens[side.offsets[i] : side.offsets[i + 1]]
            assert bytes(ids.tolist()) == document.path.read_bytes()
        assert side.bytes == len(side.tokens)
    total = store.train.bytes + store.heldout.bytes
    assert reports[-1] == (total, total)


def test_the_second_start_reads_no_text(folder, tmp_path, monkeypatch):
    first = open_store(read_corpus(folder), ByteTokenizer(), tmp_path / "cache")
    monkeypatch.setattr(store_module, "_make", None)
    again = open_store(read_corpus(folder), ByteTokenizer(), tmp_path / "cache")
    assert again.digest == first.digest and isinstance(again.train.tokens, np.memmap)


def test_changed_text_makes_a_new_store(folder, tmp_path):
    first = open_store(read_corpus(folder), ByteTokenizer(), tmp_path / "cache")
    document = read_corpus(folder).train[0]
    document.path.write_text("something else")
    again = open_store(read_corpus(folder), ByteTokenizer(), tmp_path / "cache")
    assert again.digest != first.digest
    assert bytes(again.train.tokens[:14].tolist()) == b"something else"


def test_the_digest_is_of_the_text_alone(folder, tmp_path):
    first = open_store(read_corpus(folder), ByteTokenizer(), tmp_path / "cache")
    for document in read_corpus(folder).train:
        os.utime(document.path, (1, 1))
    moved = folder.rename(tmp_path / "moved")
    assert open_store(read_corpus(moved), ByteTokenizer(), tmp_path / "cache").digest == first.digest


def test_a_damaged_store_is_made_again(folder, tmp_path):
    cache = tmp_path / "cache"
    first = open_store(read_corpus(folder), ByteTokenizer(), cache)
    file = next(cache.glob("tokens-*/train.bin"))
    file.write_bytes(file.read_bytes()[:-1])
    assert open_store(read_corpus(folder), ByteTokenizer(), cache).digest == first.digest
    assert file.stat().st_size == first.train.bytes


def test_a_killed_process_leaves_no_store(folder, tmp_path):
    cache = tmp_path / "cache"
    script = f"""
import os, signal
from planform.runtime.data import ByteTokenizer, open_store, read_corpus
def report(done, total):
    if done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)
open_store(read_corpus({str(folder)!r}), ByteTokenizer(), {str(cache)!r}, report)
"""
    child = subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": PACKAGE})
    assert child.returncode == -9
    (part,) = cache.glob("*.part-*")
    assert (part / "train.bin").exists() and not list(cache.glob("*/store.json"))
    store = open_store(read_corpus(folder), ByteTokenizer(), cache)
    assert store.train.documents == len(read_corpus(folder).train)
    assert not list(cache.glob("*.part-*"))


def test_a_full_disk(folder, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "_write", full)
    with pytest.raises(UserError, match="disk is full"):
        open_store(read_corpus(folder), ByteTokenizer(), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.part-*"))


def test_a_cache_that_cannot_be_written(folder, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="can't write the token cache"):
        open_store(read_corpus(folder), ByteTokenizer(), tmp_path / "cache")


# Windows and batches


def test_windows_cover_every_target_once_and_mark_documents(folder, tmp_path):
    data = make(folder, tmp_path / "cache")
    documents = [d.path.read_text() for d in data.corpus.train]
    targets = []
    for i in range(len(data._windows)):
        row = {name: value[0] for name, value in data._windows.take(np.array([i])).items()}
        assert row["tokens"].dtype == np.int32 and row["document"][0] == row["position"][0] == 0
        same = row["document"][1:] == row["document"][:-1]
        assert np.array_equal(row["position"][1:], np.where(same, row["position"][:-1] + 1, 0))
        for number in range(row["document"][-1] + 1):
            piece = text_of(row["tokens"][row["document"] == number])
            assert any(piece in text for text in documents)
            targets.append(piece[1:])
    whole = "".join(text[1:] for text in documents)
    covered = "".join(targets)
    assert whole.startswith(covered) and len(whole) - len(covered) < data.length


def test_an_epoch_sees_every_window_once(folder, tmp_path):
    data = make(folder, tmp_path / "cache", Share(1))
    count = len(data._windows)
    epochs = [[data.batch(e * count + i)["tokens"].tobytes() for i in range(count)] for e in range(2)]
    every = [data._windows.take(np.array([i]))["tokens"].tobytes() for i in range(count)]
    assert epochs[0] != every and epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(every)


def test_a_batch_is_a_function_of_seed_and_step(folder, tmp_path):
    data, again = make(folder, tmp_path / "cache"), make(folder, tmp_path / "cache")
    for step in (1000, 3, 0):
        for name, value in data.batch(step).items():
            assert np.array_equal(value, again.batch(step)[name])
    other = make(folder, tmp_path / "cache", seed=1)
    assert not np.array_equal(other.batch(0)["tokens"], data.batch(0)["tokens"])
    assert other.describe()["fingerprint"] != data.describe()["fingerprint"] == again.describe()["fingerprint"]


def test_iterating_from_a_step_is_the_same(folder, tmp_path):
    data = make(folder, tmp_path / "cache")
    iterator = data.batches(17)
    for step in range(17, 60):
        assert np.array_equal(next(iterator)["tokens"], data.batch(step)["tokens"])
    iterator.close()


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_a_global_batch(folder, tmp_path, processes):
    whole = make(folder, tmp_path / "cache", Share(8))
    parts = [make(folder, tmp_path / "cache", Share(8, p, processes)) for p in range(processes)]
    for step in (0, 1, 77):
        joined = np.concatenate([part.batch(step)["tokens"] for part in parts])
        assert np.array_equal(joined, whole.batch(step)["tokens"])
    for batches in zip(whole.heldout(3), *(part.heldout(3) for part in parts), strict=True):
        joined = np.concatenate([batch["tokens"] for batch in batches[1:]])
        assert np.array_equal(joined, batches[0]["tokens"])


def test_heldout_is_bounded_fixed_and_apart(folder, tmp_path):
    data = make(folder, tmp_path / "cache")
    all_of_it = list(data.heldout(10_000))
    assert len(all_of_it) == len(data._heldout_windows) // 4
    few = list(data.heldout(3))
    assert [b["tokens"].shape for b in few] == [(4, 16)] * 3
    assert np.array_equal(few[2]["tokens"], list(data.heldout(3))[2]["tokens"])
    heldout = [d.path.read_text() for d in data.corpus.heldout]
    for row, document in zip(few[1]["tokens"], few[1]["document"]):
        assert any(text_of(row[document == 0]) in text for text in heldout)


def test_heldout_smaller_than_a_batch(folder, tmp_path):
    data = make(folder, tmp_path / "cache", Share(1000))
    (batch,) = data.heldout(5)
    assert batch["tokens"].shape == (1000, 16)
    assert len({row.tobytes() for row in batch["tokens"]}) == len(data._heldout_windows)


def test_faults_of_sizes_are_the_users(folder, tmp_path):
    with pytest.raises(UserError, match="shorter than one window"):
        make(folder, tmp_path / "cache", length=100_000)
    with pytest.raises(UserError, match="nothing to predict"):
        make(folder, tmp_path / "cache", length=1)
    with pytest.raises(UserError, match="split among 3"):
        Share(8, 0, 3)
    with pytest.raises(UserError, match="seed"):
        make(folder, tmp_path / "cache", seed=-1)


def test_a_tokenizer_with_bos_and_eos(folder, tmp_path):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<bos>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([d.path.read_text() for d in read_corpus(folder).train], trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>", "eos_token": "<eos>"}))
    ours = JsonTokenizer(tmp_path)
    data = TextData(read_corpus(folder), ours, 8, Share(2), tmp_path / "cache")
    store = open_store(data.corpus, ours, tmp_path / "cache")
    assert store.train.tokens.dtype == np.uint16
    for i, document in enumerate(data.corpus.train):
        ids = store.train.tokens[store.train.offsets[i] : store.train.offsets[i + 1]]
        assert (ids[0], ids[-1]) == (0, 1) and ours.decode(ids) == document.path.read_text()
    text = sum(len(d.path.read_bytes()) for d in data.corpus.heldout)
    predicted = len(store.heldout.tokens) - store.heldout.documents
    assert data.bytes_per_token == text / predicted > 1
    assert data.bits_per_byte(np.log(2) * 3) == pytest.approx(3 / data.bytes_per_token)
    assert 0 < data.bigram_bits_per_byte(1) < 8


# Bigram


def test_bigram_of_known_probabilities():
    train = np.frombuffer(b"ababababac", np.uint8)
    pairs = count_pairs(train)
    assert pairs[ord("a") * 256 + ord("b")] == 4 and pairs.sum() == 9
    # after a: b 4 times, c once; two kinds; q(b) = 5/265, q(c) = 2/265, by hand from the formula
    seen = count_pairs(np.frombuffer(b"ab", np.uint8))
    assert bigram_bits_per_byte(pairs, seen) == pytest.approx(-np.log2((4 + 2 * 5 / 265) / 7))
    unseen = count_pairs(np.frombuffer(b"zq", np.uint8))
    assert bigram_bits_per_byte(pairs, unseen) == pytest.approx(-np.log2(1 / 265))


def test_bigram_is_a_distribution():
    rng = np.random.default_rng(0)
    pairs = count_pairs(rng.integers(0, 40, 5000).astype(np.uint8))
    for a in (3, 200):
        each = [bigram_bits_per_byte(pairs, np.bincount([a * 256 + b], minlength=1 << 16)) for b in range(256)]
        assert sum(2.0 ** -np.array(each)) == pytest.approx(1)


def test_pairs_never_reach_over_documents(monkeypatch):
    text = np.frombuffer(b"one,two,three", np.uint8)
    starts = np.array([0, 4, 8])
    parts = sum(count_pairs(part) for part in (text[:4], text[4:8], text[8:]))
    assert np.array_equal(count_pairs(text, starts), parts)
    monkeypatch.setattr("planform.runtime.data.bigram.SPAN", 3)
    assert np.array_equal(count_pairs(text, starts), parts)


def test_the_bigram_is_asked_what_the_model_is_asked(folder, tmp_path):
    data = make(folder, tmp_path / "cache")
    pairs = np.zeros(1 << 16, np.int64)
    for batch in data.heldout(3):
        for row, document in zip(batch["tokens"], batch["document"]):
            for a, b, same in zip(row[:-1], row[1:], document[:-1] == document[1:]):
                pairs[a * 256 + b] += same
    counted = sum(count_pairs(np.fromfile(d.path, np.uint8)) for d in data.corpus.train)
    assert data.bigram_bits_per_byte(3) == pytest.approx(bigram_bits_per_byte(counted, pairs))
