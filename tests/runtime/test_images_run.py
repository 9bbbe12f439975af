"""A small network of convolutions from pictures to a file in 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from planform.backends.onnx import verify_contract
from planform.runtime.errors import UserError
from planform.runtime.evaluate import evaluate_run
from planform.runtime.exporting import export_run
from planform.runtime.quantize import Wish
from planform.runtime.run import parameters_of_run
from planform.runtime.train import train
from planform.spec import load_text

SPEC = """
planform: 1
model: pictures
dims: {classes: 3, colours: 1}
graphs:
  classify:
    inputs:
      image: float[batch, height, width, colours]
    body: |
      logits = image >> conv2d(16, 3, stride=2) >> batch_norm >> relu >> conv2d(16, 3) >> batch_norm >> relu
               >> mean(height, width) >> linear(classes, bias=true)
train:
  data: images(image, label, shift=1, flip=true, mean=0.5, std=0.25, heldout=0.25)
  loss: cross_entropy(classify(image).logits, label)
  optimizer: sgd(0.1, momentum=0.9, nesterov=true, weight_decay=1e-4)
  batch: 16
  steps: 30
  evaluate:
    metrics:
      accuracy: accuracy(classify(image).logits, label)
"""


def pictures(file: Path) -> Path:
    """Stripes along one axis, the other, or neither, with noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    images = rng.integers(0, 60, (120, 12, 12))
    images[labels == 0, ::2] += 190
    images[labels == 1, :, ::2] += 190
    np.savez(file, images=images.astype(np.uint8), labels=labels)
    return file


@pytest.mark.slow
def test_from_pictures_to_a_file_in_8_bits(tmp_path: Path) -> None:
    spec, files = load_text(SPEC, "pictures.yaml"), pictures(tmp_path / "pictures.npz")
    train(spec, tmp_path / "whole", files=files, quiet=True)
    found = evaluate_run(tmp_path / "whole", batches=1)
    assert found["accuracy"] > 0.9
    # What training sees depends on the step alone: a run that went on is the run that didn't stop.
    train(spec, tmp_path / "parts", files=files, steps=7, quiet=True)
    train(spec, tmp_path / "parts", files=files, quiet=True)
    one, other = (dict(parameters_of_run(tmp_path / n)) for n in ("whole", "parts"))
    assert all(np.array_equal(one[n], other[n]) for n in one)

    told = export_run(tmp_path / "whole", tmp_path / "onnx", wish=Wish("int8"))
    assert told["quantization"]["weights"]["int8, a scale a channel"] == 9 * 16 + 9 * 16 * 16
    assert told["quantization"]["divergence"]["value"] < 0.1
    assert verify_contract(tmp_path / "onnx").holds


def test_pictures_of_another_kind_are_refused(tmp_path: Path) -> None:
    files = pictures(tmp_path / "pictures.npz")
    spec = load_text(SPEC, "pictures.yaml", overrides=["colours=3"])
    with pytest.raises(UserError, match="have 1 channels, the model's 3"):
        train(spec, tmp_path / "run", files=files, quiet=True)
    spec = load_text(SPEC.replace("shift=1", "crop=0.5"), "pictures.yaml")
    with pytest.raises(UserError, match="pictures that are cut out need a `size`"):
        train(spec, tmp_path / "run", files=files, quiet=True)
