"""`planform sample`: what a `sample` section means, at once and in steps, and what is written of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from planform.backends.onnx import verify_contract
from planform.backends.reference import run as reference
from planform.compiler.elaborate import elaborate, sampler
from planform.compiler.parameters import initial
from planform.runtime.cli.commands import app
from planform.runtime.data import View
from planform.runtime.errors import UserError
from planform.runtime.exporting import export_run
from planform.runtime.functa.images import pixels
from planform.runtime.run import parameters_of_run, spec_of_run
from planform.runtime.sample import Generator, sample
from planform.runtime.train import train
from planform.spec import SpecError, load, load_text

MIX = """
planform: 1
model: mix
dims: {d: 2, classes: 3}
params:
  centres: {shape: [classes, d]}
graphs:
  generator:
    inputs:
      z: float[batch, d]
      label: int[batch]
    body: x = (z >> linear(d)) + (label >> embed(centres))
sample:
  draws:
    z: normal[batch, d]
  value: 10 * generator(z, label).x
"""
WEIGHTS = {
    "generator.linear.weight": np.array([[1.0, 0.5], [0.0, 2.0]]),
    "centres": np.array([[0.0, 0.0], [4.0, -4.0], [-8.0, 8.0]]),
}
PICTURES = """
planform: 1
model: pictures
dims: {classes: 3, noise: 4, height: 4, width: 6, channels: 1, points: height * width}
graphs:
  generator:
    inputs:
      z: float[batch, noise]
      label: int[batch]
    body: |
      of_class = label >> one_hot(classes) >> linear(points, name="class")
      image = (z >> linear(points, bias=true)) + of_class >> tanh
              >> "b (height width channels) -> b height width channels"
  judge:
    inputs:
      image: float[batch, height, width, channels]
    body: score = image >> "b h w c -> b (h w c)" >> linear(1)
train:
  data: images(image, label, mean=0.5, std=0.25, heldout=0.25)
  targets:
    slow: ema(generator, decay=0.5)
  updates:
    generator:
      params: generator
      sample:
        z: normal[batch, noise]
        fake: category[batch, classes]
      loss: -mean(judge(generator(z, fake).image).score)
      optimizer: adam(0.1)
    judge:
      params: judge
      sample:
        z: normal[batch, noise]
      loss: mean(judge(generator(z, label).image).score) - mean(judge(image).score)
      optimizer: adam(0.01)
  batch: 8
  steps: 3
sample:
  draws:
    z: normal[batch, noise]
  value: slow(z, label).image
"""


def test_at_once_from_draws_and_classes() -> None:
    """Samples of a linear map: those of a class have the mean and the covariance that the map gives them."""
    made = Generator(load_text(MIX), WEIGHTS)
    how = made.sampler
    assert (how.steps, how.given, dict(how.draws), how.result) == (None, ("label",), {"z": "normal"}, "sample")
    label = np.arange(6000) % 3
    found = made.sample({"label": label}, 6000, seed=1, batch=500) / 10
    weight = WEIGHTS["generator.linear.weight"]
    for c, centre in enumerate(WEIGHTS["centres"]):
        np.testing.assert_allclose(found[label == c].mean(0), centre, atol=0.2)
        np.testing.assert_allclose(np.cov(found[label == c], rowvar=False), weight.T @ weight, atol=0.35)
    assert len({float(x[0]) for x in found}) == 6000  # draws of their own, across batches too
    np.testing.assert_array_equal(made.sample({"label": label}, 6000, seed=1, batch=500) / 10, found)
    assert np.abs(made.sample({"label": label}, 6000, seed=2, batch=500) / 10 - found).max() > 1
    with pytest.raises(UserError, match="needs `label`"):
        made.sample({}, 3)


def test_classes_can_be_drawn() -> None:
    text = MIX.replace(
        "    z: normal[batch, d]\n  value: 10 * generator(z, label)",
        "    z: normal[batch, d]\n    kind: category[batch, classes]\n  value: generator(0 * z, kind)",
    )
    made = Generator(load_text(text), WEIGHTS)
    assert made.sampler.given == () and dict(made.sampler.classes) == {"kind": 3}
    found, counts = np.unique(made.sample({}, 900, batch=300), axis=0, return_counts=True)
    np.testing.assert_array_equal(found, WEIGHTS["centres"][[2, 0, 1]])
    assert counts.min() > 200


def test_sngan_is_sampled_by_its_slow_copy() -> None:
    how = sampler(load("sngan_32", "small"))
    assert how.given == ("label",) and dict(how.draws) == {"z": "normal"} and how.steps is None
    weights = initial(how.graph.weights)
    assert weights and all(name.startswith("slow.") for name in weights)
    z, label = np.random.default_rng(0).normal(size=(2, 32)), np.array([1, 7])
    image = reference(how.graph, weights, {"z": z, "label": label})["sample"]
    same = reference(elaborate(load("sngan_32", "small"), "generator", "slow"), weights, {"z": z, "label": label})
    np.testing.assert_array_equal(image, same["image"])


def test_pictures_as_the_data_had_them() -> None:
    view = View(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(pixels(view.restored(view.centred(Image.fromarray(image)))), image)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    np.savez(folder / "pictures.npz", images=rng.integers(0, 256, (40, 4, 6, 1), np.uint8), labels=np.arange(40) % 3)
    spec = load_text(PICTURES, "pictures.yaml")
    train(spec, folder / "run", files=folder / "pictures.npz", mesh={"data": 1}, quiet=True)
    return folder / "run"


def test_what_is_written(run: Path, tmp_path: Path) -> None:
    """The pictures of the slow copy, in the units of the files that were trained on: they can be trained on again."""
    told = sample(run, tmp_path / "out", count=7, labels=(2, 0), seed=3)
    assert told["steps"] is None and told["size"] == [4, 6] and told["kind"] == "images"
    with np.load(tmp_path / "out" / "samples.npz") as found:
        images, labels = found["images"], found["labels"]
    assert labels.tolist() == [2, 0, 2, 0, 2, 0, 2] and images.shape == (7, 4, 6, 1) and images.dtype == np.uint8
    for i in range(7):
        with Image.open(tmp_path / "out" / "samples" / f"{i:04}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), images[i, ..., 0])
    with Image.open(tmp_path / "out" / "samples.png") as image:
        assert image.size == (4 * 6 + 3 * 2, 2 * 4 + 2)
    made = Generator.of_run(run).sample({"label": labels}, 7, seed=3)
    assert np.abs(made).max() <= 1 and made.std() > 0.3
    np.testing.assert_array_equal(images, pixels(made * 0.25 + 0.5))
    # The same draws by the generator itself are other pictures: it is ahead of its average.
    ahead = Generator.of_run(run, overrides=("sample.value=generator(z, label).image",))
    assert np.abs(ahead.sample({"label": labels}, 7, seed=3) - made).max() > 1e-2
    train(spec_of_run(run), tmp_path / "again", files=tmp_path / "out" / "samples.npz", steps=1, mesh={"data": 1},
          batch=2, quiet=True)  # fmt: skip


def test_the_command(run: Path, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["sample", str(run), "--out", str(tmp_path / "all"), "--count", "5", "--json"])
    assert found.exit_code == 0 and json.loads(found.stdout)["count"] == 5
    with np.load(tmp_path / "all" / "samples.npz") as made:
        assert made["labels"].tolist() == [0, 1, 2, 0, 1]  # the classes of the data, in turn
    found = CliRunner().invoke(app, ["sample", str(run), "--out", str(tmp_path / "all"), "--label", "3"])
    assert found.exit_code == 2 and "no class 3" in found.stderr


@pytest.mark.parametrize(
    "options, message",
    [
        ({"labels": (1, 3)}, "no class 3"),
        ({"steps": 5}, "at once, not in steps"),
        ({"size": (8, 8)}, "only latents"),
        ({"functaset": "set"}, "only latents"),
        ({"overrides": ("noise=5",)}, "changes the shape"),
    ],
)
def test_what_it_refuses(run: Path, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sample(run, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_spec_without_a_sampler(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="doesn't say how it is sampled") as caught:
        sample(run, tmp_path / "out", overrides=("sample=null",))
    assert caught.value.diagnostics[0].code == "PF0514"


POINTS = """
planform: 1
model: points
dims: {d: 2, noise: 4}
graphs:
  generator:
    inputs:
      z: float[batch, noise]
    body: x = z >> linear(d, bias=true)
train:
  data: arrays(x)
  sample:
    z: normal[batch, noise]
  loss: square(mean(generator(z).x) - mean(x))
  optimizer: adam(0.01)
  batch: 8
  steps: 2
sample:
  draws:
    z: normal[batch, noise]
  value: generator(z).x
"""


def test_arrays_and_no_classes(tmp_path: Path) -> None:
    np.savez(tmp_path / "points.npz", x=np.ones((40, 2), np.float32))
    train(load_text(POINTS), tmp_path / "run", files=tmp_path / "points.npz", mesh={"data": 1}, quiet=True)
    sample(tmp_path / "run", tmp_path / "out", count=70)
    with np.load(tmp_path / "out" / "samples.npz") as made:
        assert made.files == ["samples"] and made["samples"].shape == (70, 2)
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["samples.npz"]
    with pytest.raises(UserError, match="no classes"):
        sample(tmp_path / "run", tmp_path / "other", labels=(0,))


def test_as_an_artefact(run: Path, tmp_path: Path) -> None:
    """Draws are inputs of it: who calls it makes them."""
    export_run(run, tmp_path / "onnx", graph="sample")
    assert verify_contract(tmp_path / "onnx").holds
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    z, label = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32), np.array([2, 0], np.int32)
    (made,) = session.run(["sample"], {"z": z, "label": label})
    want = reference(sampler(spec_of_run(run)).graph, parameters_of_run(run), {"z": z, "label": label})["sample"]
    np.testing.assert_allclose(made, want, atol=1e-5)
