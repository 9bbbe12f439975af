"""Signals as points with values: grids, files of several kinds, and what isn't one."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from planform.runtime.data import Share, SignalData, grid, load_signals
from planform.runtime.errors import UserError


def images(count: int = 12, height: int = 3, width: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def test_a_grid_has_the_centres_of_cells_rows_first() -> None:
    np.testing.assert_allclose(grid(2), [[0.25], [0.75]])
    np.testing.assert_allclose(grid(2, 3)[:4], [[0.25, 1 / 6], [0.25, 0.5], [0.25, 5 / 6], [0.75, 1 / 6]], rtol=1e-6)
    assert grid(2, 3, 4).shape == (24, 3) and grid(2, 3, 4).dtype == np.float32


def test_points_carry_the_values_of_their_pixels() -> None:
    pixels = images()
    data = SignalData({"values": pixels, "labels": np.arange(12)}, ("coords", "rgb", "label"), Share(4), portion=0.25)
    assert data.describe()["shape"] == [3, 5]
    for batch in (data.batch(3), next(data.batches(3)), *data.heldout(1)):
        assert batch["coords"].shape == (4, 15, 2) and batch["rgb"].shape == (4, 15, 3)
        for x, y, i in zip(batch["coords"], batch["rgb"], batch["label"]):
            row, column = (x * (3, 5)).astype(int).T
            np.testing.assert_array_equal(y, pixels[i, row, column] / np.float32(255))


def test_files(tmp_path: Path) -> None:
    pixels = images()
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.arange(12) % 3)
    np.save(tmp_path / "b.npy", pixels[..., 0] / 255)
    for i, one in enumerate(pixels):
        folder = tmp_path / "photos" / ("cat" if i % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(one).save(folder / f"{i:02}.png")
    a, _ = load_signals(tmp_path / "a.npz", 2, 3)
    assert np.array_equal(a["values"], pixels) and a["labels"].tolist() == [0, 1, 2] * 4
    b, _ = load_signals(tmp_path / "b.npy", 2, 1)
    assert b["values"].shape == (12, 3, 5, 1) and "labels" not in b
    c, none = load_signals(tmp_path / "photos", 2, 3)
    assert none is None
    order = [*range(1, 12, 2), *range(0, 12, 2)]  # cats first
    assert np.array_equal(c["values"], pixels[order]) and c["labels"].tolist() == [0] * 6 + [1] * 6
    assert load_signals(tmp_path / "photos", 2, 1)[0]["values"].shape == (12, 3, 5, 1)


def test_sound_and_volumes(tmp_path: Path) -> None:
    np.save(tmp_path / "sound.npy", np.zeros((2, 100), np.float32))
    np.save(tmp_path / "volume.npy", np.zeros((2, 4, 5, 6), np.uint16))
    assert load_signals(tmp_path / "sound.npy", 1, 1)[0]["values"].shape == (2, 100, 1)
    volumes, _ = load_signals(tmp_path / "volume.npy", 3, 1)
    batch = SignalData(volumes, ("x", "density"), Share(1)).batch(0)
    assert batch["x"].shape == (1, 120, 3) and batch["density"].shape == (1, 120, 1)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def test_published_files_say_what_is_held_out(tmp_path: Path) -> None:
    mnist, cifar, fine = (tmp_path / n for n in ("mnist", "cifar", "cifar100"))
    for folder in (mnist, cifar, fine):
        folder.mkdir()
    grey, labels = images()[..., 0], np.arange(12) % 10
    for part, rows in (("train", slice(0, 8)), ("t10k", slice(8, 12))):
        (mnist / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(grey[rows])))
        (mnist / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels[rows]))
    train, test = load_signals(mnist, 2, 1)
    assert test is not None and np.array_equal(np.concatenate([train["values"], test["values"]])[..., 0], grey)
    assert np.array_equal(np.concatenate([train["labels"], test["labels"]]), labels)
    data = SignalData(train, ("coords", "signal", "label"), Share(2), heldout=test)
    assert [b["label"].tolist() for b in data.heldout(2)] == [labels[8:10].tolist(), labels[10:].tolist()]

    colour = images(12, 32, 32)
    rows = np.concatenate([labels[:, None], colour.transpose(0, 3, 1, 2).reshape(12, -1)], 1).astype(np.uint8)
    for i in range(2):
        rows[5 * i : 5 * i + 5].tofile(cifar / f"data_batch_{i + 1}.bin")
    rows[10:].tofile(cifar / "test_batch.bin")
    train, test = load_signals(cifar, 2, 3)
    assert test is not None and np.array_equal(train["values"], colour[:10]) and test["labels"].tolist() == [0, 1]
    both = np.concatenate([labels[:, None] + 50, rows], 1).astype(np.uint8)  # the coarse label first
    both[:9].tofile(fine / "train.bin")
    both[9:].tofile(fine / "test.bin")
    assert load_signals(fine, 2, 3)[0]["labels"].tolist() == labels[:9].tolist()

    (mnist / "t10k-labels-idx1-ubyte").write_bytes(idx(labels[8:12])[:-1])
    rows.reshape(-1)[:-1].tofile(cifar / "test_batch.bin")
    for folder, words in ((mnist, "damaged"), (cifar, "no whole number")):
        with pytest.raises(UserError, match=words):
            load_signals(folder, 2, 3)


@pytest.mark.parametrize("name, words", [
    ("missing.npz", "no arrays"), ("other.npz", "no `images`"), ("grey.npy", "1 channels"), ("flat.npy", "2 axes"),
    ("empty", "no images"), ("sizes", "images must have one size"), ("broken", "no image that can be read"),
])  # fmt: skip
def test_what_is_no_signal(tmp_path: Path, name: str, words: str) -> None:
    np.savez(tmp_path / "other.npz", left=np.zeros(3), right=np.zeros(3))
    np.save(tmp_path / "grey.npy", np.zeros((2, 3, 5)))
    np.save(tmp_path / "flat.npy", np.zeros((2, 3)))
    for folder in ("empty", "sizes", "broken"):
        (tmp_path / folder).mkdir()
    for i in (2, 3):
        Image.fromarray(images(1, i, i)[0]).save(tmp_path / "sizes" / f"{i}.png")
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError) as error:
        load_signals(tmp_path / name, 2, 3)
    assert words in f"{error.value} {error.value.help}"


def test_labels_that_are_not_there() -> None:
    with pytest.raises(UserError, match="no labels"):
        SignalData({"values": images()}, ("coords", "rgb", "label"), Share(2))
