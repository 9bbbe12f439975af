"""Functasets: latents on disk and pictures from them; stopped, moved, damaged, and of more steps."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image
from safetensors.numpy import save_file
from tests.runtime.test_fields import images, run  # noqa: F401 - fixtures: 120 blobs, 6 x 8, and a field of them

from planform.backends.onnx import verify_contract
from planform.runtime.data import LatentData, Share, grid
from planform.runtime.errors import UserError
from planform.runtime.evaluate import evaluate_run
from planform.runtime.exporting import export_run
from planform.runtime.functa.curves import LINE, curve
from planform.runtime.functa.decode import decode
from planform.runtime.functa.encode import encode, signals_of
from planform.runtime.functa.field import Field, centres, psnr
from planform.runtime.functa.functaset import Functaset, read_shard
from planform.runtime.functa.images import sheet, stream_png
from planform.runtime.functa.mapped import Joined, mapped
from planform.runtime.metrics import read_metrics
from planform.runtime.sample import sample
from planform.runtime.train import train
from planform.spec import load


@pytest.fixture(scope="module")
def whole(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    folder: Path = tmp_path_factory.mktemp("latents") / "blobs"
    encode(run, folder, batch=5, shard=16)
    return folder


def test_latents_are_those_that_training_measures(run: Path, whole: Path) -> None:  # noqa: F811
    found = Functaset.open(whole)
    assert {s: found.rows(s) for s in ("train", "heldout")} == {"train": 114, "heldout": 6}
    assert len(list(whole.glob("train-*.safetensors"))) == 8 and found.shape == (2, 2, 4)
    latents = found.read("heldout", ("latent", "psnr", "index"))
    train = found.read("train", ("latent", "index"))
    assert sorted([*train["index"], *latents["index"]]) == list(range(120))
    measured = evaluate_run(run, overrides=("train.batch=6",), batches=1)
    assert latents["psnr"].mean() == pytest.approx(found.told["splits"]["heldout"]["means"]["psnr"], rel=1e-5)
    spread = latents["psnr"][np.arange(8) * 6 // 8]  # six rows make a batch of 8, for as many devices
    assert measured["psnr"] == pytest.approx(float(spread.mean()), abs=1e-3)
    normal = found.normalised(train["latent"]).reshape(-1, 4)
    np.testing.assert_allclose(normal.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(normal.std(0), 1, atol=1e-3)
    np.testing.assert_allclose(found.restored(found.normalised(train["latent"])), train["latent"], atol=1e-5)


def test_the_curve_is_drawn_from_the_runs_own_numbers(run: Path, whole: Path) -> None:  # noqa: F811
    with Image.open(whole / "psnr.png") as image:
        drawn = np.asarray(image)
    points = [(line["step"], line["psnr"]) for line in read_metrics(run) if "psnr" in line]
    assert len(points) == 2
    rows, columns = np.nonzero((drawn == LINE).all(-1))
    rows, columns = rows[columns < 640], columns[columns < 640]
    first, last = (rows[columns <= columns.min() + 4].mean(), rows[columns >= columns.max() - 4].mean())
    assert first > last + 200  # the second is higher: the two are all there is to the range
    by_steps = Functaset.open(whole).told["psnr_by_steps"]
    title = "PSNR of held-out signals, dB"
    charts = [curve(points, title, "training steps"),
              curve(list(enumerate(by_steps, 1)), title, "steps to fit a latent (in training: 3)")]  # fmt: skip
    np.testing.assert_array_equal(drawn, sheet([charts]))
    bent = curve([(0, 1.0), (1, 3.0), (2, 2.0)], "", "")
    rows, columns = np.nonzero((bent == LINE).all(-1))
    middle = rows[columns == (columns.min() + columns.max()) // 2].mean()
    assert middle < rows[columns >= columns.max() - 4].mean() - 100


def test_stopped_anywhere_it_goes_on(run: Path, whole: Path, tmp_path: Path) -> None:  # noqa: F811
    """Shards that are whole stay as they are; what a kill left under another name, or cut short, is made again."""
    folder, calls = tmp_path / "blobs", 0

    def stop(done: int, total: int, speed: float) -> None:
        nonlocal calls
        calls += 1
        if done >= 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(run, folder, batch=5, shard=16, tell=stop)
    with pytest.raises(UserError, match="not finished"):
        Functaset.open(folder)
    kept = sorted(folder.glob("train-*.safetensors"))
    assert [f.name[6:11] for f in kept] == ["00000", "00001", "00002"]
    times = [f.stat().st_mtime_ns for f in kept]
    kept[2].write_bytes(kept[2].read_bytes()[:-40])
    (folder / ".train-00003.safetensors.part").write_bytes(b"half")
    first: list[int] = []
    encode(run, folder, batch=5, shard=16, tell=lambda done, *_: first.append(done))
    assert first[0] == 32
    assert [f.stat().st_mtime_ns for f in kept[:2]] == times[:2]
    for file in whole.glob("*.safetensors"):
        ours, theirs = read_shard(folder / file.name), read_shard(file)
        assert ours.keys() == theirs.keys() and all(np.array_equal(ours[n], theirs[n]) for n in theirs)
    assert (folder / "functaset.json").read_text() == (whole / "functaset.json").read_text()
    assert not list(folder.glob(".*")) and not (folder / "encoding.json").exists()
    encode(run, folder, batch=5, shard=16, tell=lambda *_: pytest.fail("it is done already"))


def test_others_are_refused(run: Path, whole: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(UserError, match="another fitting"):
        encode(run, whole, shard=16, steps=5)
    with pytest.raises(UserError, match="another latent"):
        encode(run, whole, shard=17)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("mine")
    with pytest.raises(UserError, match="isn't a functaset"):
        encode(run, tmp_path / "letters")
    with pytest.raises(UserError, match="no functaset"):
        decode(tmp_path / "letters", tmp_path / "out")
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    (broken / "heldout-00000.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(UserError, match="damaged"):
        decode(broken, tmp_path / "out")
    with pytest.raises(UserError, match="a size of 1"):
        decode(whole, tmp_path / "out", sizes=[(4,)])
    assert not (tmp_path / "out").exists()


def test_more_steps_fit_better(run: Path, whole: Path, tmp_path: Path) -> None:  # noqa: F811
    one, six = (encode(run, tmp_path / str(n), steps=n) for n in (1, 6))
    loss = [f.told["splits"]["heldout"]["means"]["loss"] for f in (one, Functaset.open(whole), six)]
    assert loss[0] > 1.5 * loss[1] and loss[2] != pytest.approx(loss[1], rel=1e-3)
    by_steps, psnr = zip(*((f.told["psnr_by_steps"], f.told["splits"]["heldout"]["means"]["psnr"]) for f in (one, six)))
    assert by_steps[0] == by_steps[1] and len(by_steps[0]) == 12  # the same signals, four times as far as in training
    assert [by_steps[0][0], by_steps[0][5]] == pytest.approx(psnr, abs=1e-3)


def test_pictures(whole: Path, tmp_path: Path) -> None:
    """From a copy that knows neither run nor signals but what it holds: the field is in it."""
    moved = tmp_path / "moved"
    shutil.copytree(whole, moved)
    told = decode(moved, tmp_path / "out", sizes=[(6, 8), (24, 32)], rows=(1, 4), tile=100)
    assert told["sizes"] == ["6x8", "24x32"] and told["rows"] == [1, 4]
    stored = Functaset.open(moved).read("heldout", ("psnr", "index", "latent"))
    field = Field.of_run(moved / "field")
    large = field.render(stored["latent"][1:4], (24, 32))
    assert large.shape == (3, 24, 32, 1)
    for i, index in enumerate(stored["index"][1:4]):
        with Image.open(tmp_path / "out" / "24x32" / f"heldout-{index:06}.png") as image:
            assert image.size == (32, 24) and image.mode == "L"
            np.testing.assert_allclose(np.asarray(image) / 255, np.clip(large[i, ..., 0], 0, 1), atol=0.003)
        # What is cut off to make a picture of it can only come nearer.
        assert told["psnr"]["each"][index] >= stored["psnr"][1 + i] - 1e-3
    with Image.open(tmp_path / "out" / "heldout-24x32.png") as sheet:
        assert sheet.size == (3 * 32 + 2 * 2, 2 * 24 + 2)
    assert json.loads((tmp_path / "out" / "psnr.json").read_text())["psnr"]["mean"] > 15


def test_tiles_are_the_image(whole: Path) -> None:
    """Whatever their size, and whether the last one is full."""
    found = Functaset.open(whole)
    field, latents = Field.of_run(whole / "field"), found.read("heldout")["latent"]
    direct = field.render(latents, (10, 14), tile=10**6)
    for tile in (1, 33, 140, 300):
        parts = list(field.tiles(latents[:2] if tile == 1 else latents, (10, 14), tile))
        assert all(values.shape[0] * values.shape[1] <= max(tile, 1) for *_, values in parts)
        whole_again = field.render(latents[:2] if tile == 1 else latents, (10, 14), tile)
        np.testing.assert_allclose(whole_again, direct[: len(whole_again)], atol=1e-5)
    np.testing.assert_array_equal(centres(np.arange(140), (10, 14)), grid(10, 14))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("part", [1, 5, 7, 20, 35])
def test_streamed_png(channels: int, part: int, tmp_path: Path) -> None:
    """However its pixels come: within a line, a line, several, all."""
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    points = image.reshape(-1, channels)
    stream_png(tmp_path / "a.png", image.shape, (points[i : i + part] for i in range(0, 35, part)))
    with Image.open(tmp_path / "a.png") as found:
        np.testing.assert_array_equal(np.asarray(found).reshape(image.shape), image)


def test_large_pictures_are_the_same(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are never in memory as a whole, and on no sheet."""
    pictures = []
    for name, most in (("whole", 24 * 32), ("streamed", 24 * 32 - 1)):
        monkeypatch.setattr("planform.runtime.functa.decode.SHEET", most)
        decode(whole, tmp_path / name, sizes=[(24, 32)], rows=(0, 1), tile=100)
        (file,) = (tmp_path / name / "24x32").glob("*.png")
        pictures.append(np.asarray(Image.open(file)))
        assert (tmp_path / name / "heldout-24x32.png").is_file() == (name == "whole")
    np.testing.assert_array_equal(*pictures)


def test_psnr() -> None:
    assert psnr(np.zeros(4), np.full(4, 0.1)) == pytest.approx(20)
    assert psnr(np.ones(4), np.ones(4)) == 200


@pytest.mark.slow
def test_killed_by_the_system(run: Path, whole: Path, tmp_path: Path) -> None:  # noqa: F811
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", "from planform.runtime.cli import main; main()", "functa", "encode", str(run),
               "--out", str(folder), "--batch", "1", "--shard", "2"]  # fmt: skip
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while len(list(folder.glob("train-*.safetensors"))) < 3 and time.time() < deadline and child.poll() is None:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert child.returncode == -signal.SIGKILL and not (folder / "functaset.json").exists()
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ours, theirs = Functaset.open(folder).read("train"), Functaset.open(whole).read("train")
    np.testing.assert_allclose(ours["latent"], theirs["latent"], atol=1e-5)


def test_encoder_and_field_in_plain_onnxruntime(run: Path, whole: Path, tmp_path: Path) -> None:  # noqa: F811
    """The gradients of the inner loop are in the file: three steps of it give the functaset's latents."""
    found = Functaset.open(whole)
    stored = found.read("heldout", ("latent", "index", "loss"))
    field = Field.of_run(whole / "field")
    data = signals_of(run, field)
    batch = data.batch_of(data.part("heldout").take(np.arange(6)))
    for graph, source in (("fit", run), ("field", whole / "field")):
        told = export_run(source, tmp_path / graph, graph=graph)
        assert told["form"] == "sequence" and verify_contract(tmp_path / graph).holds
    session = ort.InferenceSession(tmp_path / "fit" / "model.onnx")
    latent, loss = session.run(["latent", "loss"], {n: batch[n] for n in ("coords", "signal")})
    np.testing.assert_allclose(latent, stored["latent"], atol=1e-5)
    np.testing.assert_allclose(loss, stored["loss"], atol=1e-6)
    session = ort.InferenceSession(tmp_path / "field" / "model.onnx")
    coords = np.broadcast_to(grid(9, 5), (6, 45, 2))
    (signal,) = session.run(["signal"], {"coords": coords, "latent": latent})
    np.testing.assert_allclose(signal.reshape(6, 9, 5, 1), field.render(stored["latent"], (9, 5)), atol=1e-4)


def test_artefacts_of_one_resolution_take_no_coordinates(run: Path, whole: Path, tmp_path: Path) -> None:  # noqa: F811
    found = Functaset.open(whole)
    field, stored = Field.of_run(whole / "field"), found.read("heldout", ("latent", "index"))
    data = signals_of(run, field)
    batch = data.batch_of(data.part("heldout").take(np.arange(6)))
    for graph, source, fixed, given, want in (
        ("fit", run, data.coords, {"signal": batch["signal"]}, stored["latent"]),
        ("field", whole / "field", grid(9, 5), {"latent": stored["latent"]}, field.render(stored["latent"], (9, 5))),
    ):
        export_run(source, tmp_path / graph, graph=graph, fixed={"coords": fixed})
        assert verify_contract(tmp_path / graph).holds
        session = ort.InferenceSession(tmp_path / graph / "model.onnx")
        assert [i.name for i in session.get_inputs()] == list(given)
        (first, *_) = session.run(None, given)
        np.testing.assert_allclose(first.reshape(want.shape), want, atol=1e-4)
    for wrong, message in (({"coords": grid(4)}, "not float32"), ({"place": grid(4)}, "has no input 'place'")):
        with pytest.raises(UserError, match=message):
            export_run(run, tmp_path / "wrong", graph="fit", fixed=wrong)


# -- models of latents -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(run: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The same blobs in three classes."""
    folder = tmp_path_factory.mktemp("labelled")
    with np.load(images) as given:
        np.savez(folder / "blobs.npz", images=given["images"], labels=np.arange(120) % 3)
    encode(run, folder / "set", files=folder / "blobs.npz")
    return folder / "set"


def test_rows_are_read_where_they_lie(tmp_path: Path) -> None:
    """Across shards, in any order, and no more of them than was asked for."""
    whole = np.arange(70, dtype=np.float32).reshape(10, 7)
    files = [(tmp_path / f"{a}", whole[a:b]) for a, b in ((0, 4), (4, 5), (5, 10))]
    for file, part in files:
        save_file({"index": np.arange(len(part)), "latent": part}, file)
    parts = [mapped(file, ("latent",))["latent"] for file, _ in files]
    rows = Joined(parts)
    assert (rows.shape, rows.dtype, rows.ndim, len(rows)) == ((10, 7), np.float32, 2, 10)
    assert all(isinstance(p, np.memmap) for p in parts)
    for at in (3, 4, np.int64(9), slice(None), slice(3, 6), np.array([9, 0, 4, 4, 3])):
        np.testing.assert_array_equal(rows[at], whole[at])


def test_latents_as_data(labelled: Path, whole: Path) -> None:
    found = Functaset.open(labelled)
    data = LatentData(found, ("z", "kind"), (2, 2, None), Share(8))
    stored = found.read("train", ("latent", "labels", "index"))
    np.testing.assert_array_equal(stored["labels"], stored["index"] % 3)
    batch = next(data.batches(2))
    assert batch["z"].shape == (8, 2, 2, 4) and np.array_equal(batch["z"], data.batch(2)["z"])
    for z, kind in zip(batch["z"], batch["kind"]):
        (row,) = np.flatnonzero((np.abs(stored["latent"] - found.restored(z)) < 1e-5).all((1, 2, 3)))
        assert stored["labels"][row] == kind
    heldout = found.read("heldout")["latent"]
    for one in data.heldout(1):
        assert all((np.abs(heldout - found.restored(z)) < 1e-5).all((1, 2, 3)).any() for z in one["z"])
    with pytest.raises(UserError, match="2 x 2 x 4, the model's 4 x 4 x 4"):
        LatentData(found, ("z",), (4, 4, 4), Share(8))
    with pytest.raises(UserError, match="no labels"):
        LatentData(Functaset.open(whole), ("z", "kind"), (2, 2, 4), Share(8))


@pytest.mark.slow
def test_a_model_of_latents_is_trained_and_sampled(labelled: Path, tmp_path: Path) -> None:
    sizes = ("rows=2", "columns=2", "width=16", "heads=2", "layers=1", "classes=3", "train.batch=16",
             "train.evaluate.every=20")  # fmt: skip
    spec = load("spatial_functa_diffusion", "small", sizes)
    first = train(spec, tmp_path / "run", overrides=sizes, files=labelled, steps=20, quiet=True).values
    again = evaluate_run(tmp_path / "run")
    assert again["heldout_loss"] == pytest.approx(first["heldout_loss"], rel=1e-5)  # its draws are always the same
    told = sample(tmp_path / "run", tmp_path / "out", count=7, labels=(2, 0), size=(12, 16), steps=5)
    assert told["steps"] == 5
    with np.load(tmp_path / "out" / "samples.npz") as made:
        assert made["labels"].tolist() == [2, 0, 2, 0, 2, 0, 2] and made["latents"].shape == (7, 2, 2, 4)
        before = made["latents"]
    with Image.open(tmp_path / "out" / "samples" / "0006.png") as image:
        assert image.size == (16, 12)
    for change, same in (((), True), (("guidance=5.0",), False), (("eta=1.0",), False)):
        sample(tmp_path / "run", tmp_path / "other", count=7, labels=(2, 0), steps=5, overrides=change)
        with np.load(tmp_path / "other" / "samples.npz") as made:
            assert np.array_equal(made["latents"], before) == same
    with pytest.raises(UserError, match="no class 3"):
        sample(tmp_path / "run", tmp_path / "out", labels=(3,))
    with pytest.raises(UserError, match="changes the shape"):
        sample(tmp_path / "run", tmp_path / "out", overrides=("width=32",))
