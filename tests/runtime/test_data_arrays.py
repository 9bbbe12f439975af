import numpy as np
import pytest

from planform.runtime.data import ArrayData, Share, load_arrays
from planform.runtime.errors import UserError

FOUR = Share(4)


def rows(count: int) -> dict[str, np.ndarray]:
    """Row i of "image" is filled with i, its "label" is i."""
    image = np.tile(np.arange(count, dtype=np.float32)[:, None, None], (1, 3, 2))
    return {"image": image, "label": np.arange(count)}


def epoch(data: ArrayData, number: int, count: int) -> list[int]:
    return [int(data.batch(number * count + i)["label"][0]) for i in range(count)]


def test_rows_stay_together_and_are_seen_once_an_epoch():
    data = ArrayData(rows(100), Share(1), portion=0.1)
    first, second = epoch(data, 0, 90), epoch(data, 1, 90)
    heldout = [int(b["label"][0]) for b in data.heldout(1000)]
    assert sorted(first + heldout) == sorted(second + heldout) == list(range(100))
    assert first != second and first != sorted(first) and heldout != sorted(heldout)
    batch = data.batch(5)
    assert batch["image"].shape == (1, 3, 2) and (batch["image"] == batch["label"][0]).all()


def test_the_held_out_rows_do_not_hang_on_the_seed():
    one, two = (ArrayData(rows(100), FOUR, seed=s) for s in (1, 2))
    assert [b["label"].tolist() for b in one.heldout(9)] == [b["label"].tolist() for b in two.heldout(9)]
    assert one.batch(0)["label"].tolist() != two.batch(0)["label"].tolist()
    assert one.describe()["fingerprint"] != two.describe()["fingerprint"]


def test_processes_share_a_global_batch_and_iterating_is_the_same():
    whole = ArrayData(rows(50), FOUR)
    parts = [ArrayData(rows(50), Share(4, p, 2)) for p in range(2)]
    steps = [part.batches(30) for part in parts]
    for step in range(30, 45):
        joined = np.concatenate([next(s)["label"] for s in steps])
        assert joined.tolist() == whole.batch(step)["label"].tolist()


def test_own_held_out_arrays():
    data = ArrayData(rows(8), FOUR, heldout={k: v[:4] + 1000 for k, v in rows(8).items()})
    assert [b["label"].tolist() for b in data.heldout(5)] == [[1000, 1001, 1002, 1003]]
    assert data.describe()["train"] == {"rows": 8}
    with pytest.raises(UserError, match="other names"):
        ArrayData(rows(8), FOUR, heldout={"image": rows(8)["image"]})


def test_the_fingerprint_tells_data_apart():
    other = rows(40)
    other["image"][0] += 1
    prints = {ArrayData(a, FOUR).describe()["fingerprint"] for a in (rows(40), rows(40), other, rows(41))}
    assert len(prints) == 3


def test_files(tmp_path):
    np.savez(tmp_path / "all.npz", **rows(10))
    assert np.array_equal(load_arrays(tmp_path / "all.npz")["image"], rows(10)["image"])
    (tmp_path / "folder").mkdir()
    for name, array in rows(10).items():
        np.save(tmp_path / "folder" / name, array)
    mapped = load_arrays(tmp_path / "folder")
    assert sorted(mapped) == ["image", "label"] and isinstance(mapped["image"], np.memmap)
    a, b = (ArrayData(load_arrays(tmp_path / p), FOUR) for p in ("all.npz", "folder"))
    assert a.describe()["fingerprint"] == b.describe()["fingerprint"]
    assert list(load_arrays(tmp_path / "folder" / "label.npy")) == ["label"]


def test_pickles_are_refused(tmp_path):
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "evil.npz", a=np.array([{"a": 1}], dtype=object))
    for name in ("evil.npy", "evil.npz"):
        with pytest.raises(UserError, match="no arrays that can be read"):
            load_arrays(tmp_path / name)


def test_faults_are_the_users(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    for path in (tmp_path / "text.npz", tmp_path / "nothing.npy", tmp_path):
        with pytest.raises(UserError):
            load_arrays(path)
    with pytest.raises(UserError, match="different numbers of rows"):
        ArrayData({"a": np.zeros(3), "b": np.zeros(4)}, FOUR)
    with pytest.raises(UserError, match="rows of numbers"):
        ArrayData({"a": np.array(["x", "y"])}, FOUR)
    with pytest.raises(UserError, match="2 rows"):
        ArrayData({"a": np.zeros(1)}, FOUR)
    with pytest.raises(UserError, match="empty"):
        ArrayData({}, FOUR)
