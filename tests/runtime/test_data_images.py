"""Images with labels: folders of classes, ImageNet's own layout, arrays; how they are seen in training and held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from planform.runtime.data import ImageData, Share, View, load_pictures
from planform.runtime.errors import UserError


def pixels(count: int = 12, height: int = 9, width: int = 13) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def write(folder: Path, names: list[str]) -> None:
    for one, name in zip(pixels(len(names)), names, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(one).save(folder / name)


def labels(pictures) -> list[int]:
    return [] if pictures is None else pictures.labels.tolist()


def test_folders_of_classes(tmp_path: Path) -> None:
    names = [f"{'cat' if i % 2 else 'dog'}/{i}.png" for i in range(6)]
    write(tmp_path / "one", names)
    found, none = load_pictures(tmp_path / "one", 3)
    assert none is None and labels(found) == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(np.asarray(found.read(0)), pixels(6)[1])
    assert np.asarray(load_pictures(tmp_path / "one", 1)[0].read(0)).shape == (9, 13)

    write(tmp_path / "two" / "train", names)
    write(tmp_path / "two" / "val", ["dog/x.png"])  # a class's number is that of training
    assert list(map(labels, load_pictures(tmp_path / "two", 3))) == [[0, 0, 0, 1, 1, 1], [1]]
    write(tmp_path / "two" / "val", ["horse/x.png"])
    with pytest.raises(UserError, match="horse is a class that there is nothing to train on of"):
        load_pictures(tmp_path / "two", 3)


def test_imagenet_as_it_is_published(tmp_path: Path) -> None:
    root = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    write(root / "train", [f"n0000000{c}/n0000000{c}_{i}.JPEG" for c in (2, 1) for i in range(2)])
    write(root / "val", ["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG"])
    table = tmp_path / "LOC_val_solution.csv"
    table.write_text(
        "ImageId,PredictionString\n"
        "ILSVRC2012_val_00000002,n00000001 1 2 3 4\n"
        "ILSVRC2012_val_00000001,n00000002 5 6 7 8 n00000002 1 1 2 2\n"
    )
    for path in (tmp_path, tmp_path / "ILSVRC"):
        assert list(map(labels, load_pictures(path, 3))) == [[0, 0, 1, 1], [1, 0]]
    table.write_text("ImageId,PredictionString\n")
    with pytest.raises(UserError, match="has no class for ILSVRC2012_val_00000001.JPEG"):
        load_pictures(tmp_path, 3)
    table.unlink()
    with pytest.raises(UserError, match="the classes of the images in .*val are not known"):
        load_pictures(tmp_path, 3)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    write(tmp_path, [f"a/{i}.png" for i in range(4)] + ["b/0.png"])
    (tmp_path / "a" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    data = ImageData(load_pictures(tmp_path, 3), ("image", "label"), View(8), Share(5))
    with pytest.raises(UserError, match=r"2\.png is no image that can be read"):
        for step in range(4):
            data.batch(step)
    with pytest.raises(UserError, match=r"2\.png is no image that can be read"):
        for _ in zip(range(4), data.batches()):
            pass


def arrays(tmp_path: Path, count: int = 40) -> ImageData:
    np.savez(tmp_path / "a.npz", images=pixels(count, 8, 8), labels=np.arange(count))
    return load_pictures(tmp_path / "a.npz", 3)


VIEW = View(6, crop=0.3, shift=1, flip=True, centre=0.8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def test_what_training_sees_is_a_function_of_seed_and_step(tmp_path: Path) -> None:
    found = arrays(tmp_path)
    whole = Share(8)

    def make(seed: int = 3, share: Share = whole) -> ImageData:
        return ImageData(found, ("image", "label"), VIEW, share, seed)

    one, other = make(), make()
    for step, batch in zip((2, 3, 4, 5, 6), one.batches(2)):  # 4.75 steps are an epoch
        again = other.batch(step)
        assert batch["image"].dtype == np.float32 and batch["image"].shape == (8, 6, 6, 3)
        assert all(np.array_equal(batch[k], again[k]) for k in again)
        parts = [make(share=Share(8, p, 2)).batch(step) for p in range(2)]
        assert all(np.array_equal(np.concatenate([p[k] for p in parts]), again[k]) for k in again)
    assert not np.array_equal(make(4).batch(2)["label"], one.batch(2)["label"])
    assert make(4).describe()["fingerprint"] != one.describe()["fingerprint"] == other.describe()["fingerprint"]
    # An example is seen differently every time.
    seen = [b["image"][b["label"] == 7] for b in (one.batch(s) for s in range(20))]
    views = {v.tobytes() for s in seen for v in s}
    assert len(views) == sum(map(len, seen)) >= 3


def test_what_is_held_out_is_seen_from_its_centre(tmp_path: Path) -> None:
    data = ImageData(arrays(tmp_path), ("image", "label"), VIEW, Share(2), portion=0.25)
    batches = list(data.heldout(5))
    again = [b for _ in range(2) for b in data.heldout(5)]
    assert len(batches) == 5 and all(np.array_equal(a["image"], b["image"]) for a, b in zip(batches, again))
    raw, trained = pixels(40, 8, 8), {int(i) for s in range(8) for i in data.batch(s)["label"]}
    for batch in batches:
        for image, label in zip(batch["image"], batch["label"]):
            assert int(label) not in trained
            box = (0.8, 0.8, 7.2, 7.2)
            want = np.asarray(Image.fromarray(raw[label]).resize((6, 6), Image.Resampling.BILINEAR, box)) / 255
            np.testing.assert_allclose(image, (want - VIEW.mean) / VIEW.std, rtol=1e-4, atol=1e-5)


def test_crops_have_the_areas_and_shapes_asked_for() -> None:
    """Told by an image of its own coordinates: what is cut out, where, and how large."""
    h, w = 60, 80
    rows, columns = np.mgrid[:h, :w]
    image = Image.fromarray(np.stack([rows * 3, columns * 3, np.full((h, w), 9)], -1).astype(np.uint8))
    view, rng = View(20, crop=0.1, flip=True), np.random.default_rng(0)
    areas, ratios, mirrored = [], [], 0
    for _ in range(300):
        seen = view.drawn(image, rng) * 255 / 3
        down, right = seen[-1, 10, 0] - seen[0, 10, 0], seen[10, -1, 1] - seen[10, 0, 1]
        mirrored += right < 0
        height, width = down * 20 / 19, abs(right) * 20 / 19
        areas.append(height * width / (h * w))
        ratios.append(width / height)
    assert 0.08 < min(areas) < 0.15 and 0.85 < max(areas) <= 1.02
    assert 0.70 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.40
    assert 120 < mirrored < 180


def test_pictures_as_they_are_and_moved() -> None:
    image = pixels(1, 5, 5)[0]
    plain = View()
    np.testing.assert_allclose(plain.centred(Image.fromarray(image)) * 255, image, rtol=1e-5)
    moved = {View(shift=1).drawn(Image.fromarray(image), np.random.default_rng(s)).tobytes() for s in range(60)}
    assert len(moved) == 9
    down = View(shift=1)
    rng = type("Fixed", (), {"integers": lambda self, *a: (1, -1)})()
    np.testing.assert_allclose(down.drawn(Image.fromarray(image), rng)[1:, :-1] * 255, image[:-1, 1:], rtol=1e-5)
    assert (down.drawn(Image.fromarray(image), rng)[0] == 0).all()


@pytest.mark.parametrize("view", [
    {"crop": 0.0, "size": 4}, {"centre": 1.5, "size": 4}, {"crop": 0.5}, {"std": (0.0,)},
])  # fmt: skip
def test_views_that_make_no_sense(view: dict[str, object]) -> None:
    with pytest.raises(UserError):
        View(**view)
