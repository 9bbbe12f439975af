"""ResNet in onnxruntime: speed beside torch's exporter and torch, and 8 bits by calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from planform.runtime.data import Share
from planform.runtime.evaluate import as_it_ran
from planform.runtime.exporting import export_run
from planform.runtime.opening import open_data
from planform.runtime.quantize import Wish
from planform.runtime.run import read_run, spec_of_run
from tests.benchmarks.ratios import judged, together
from tests.benchmarks.resnet_onnx import measure
from tests.evidence import row
from tests.evidence.functa.images import workspace

from .d_resnet_learns import trained

SEEN = 10_000 // 128
"""Batches of Fashion-MNIST's test images."""


@row(
    "replicator_models",
    "resnet_onnx",
    "ResNet-50, one image of 224 x 224, two threads, float32: at least as fast as what torch's exporter makes of "
    "transformers' on the same onnxruntime and 2 x torch, or, where its operations at the rate of onnxruntime's own "
    "products would take more than half of torch's time, at 90% of that rate; in 8 bits at least 1.8 x our float32",
    6,
)
def resnet_onnx() -> tuple[Any, bool | str]:
    found = measure(rounds=60)
    ahead = {n: [1 / b for b in reversed(found[n]["interval"])] for n in ("torch's exporter", "torch")}
    ahead["ours in 8 bits"] = found["ours in 8 bits"]["interval"]
    aims = {"torch's exporter": 1.0, "torch": 2.0, "ours in 8 bits": 1.8}
    if found["torch_to_that"] < 2:
        ahead["torch"], aims["torch"] = [found["share_of_that_rate"]] * 2, 0.9
    same = found["ours"]["rms_from_torch"] < 1e-4
    return found, together([same, *(judged(*ahead[n], aim) for n, aim in aims.items())])


@row(
    "replicator_models",
    "resnet_8_bits",
    "a residual network trained on Fashion-MNIST, exported in 8 bits with ranges from 512 training images: right on "
    "no fewer of the test images than half a percent less, both measured in onnxruntime",
    10,
)
def resnet_8_bits() -> tuple[Any, bool]:
    run = trained("residual", 0)
    figure: dict[str, Any] = {}
    for name, wish in (("float32", None), ("int8", Wish("int8"))):
        folder = workspace() / "onnx" / f"resnet-{name}"
        told = export_run(run, folder, wish=wish)
        figure[name] = {"accuracy": round(accuracy(run, folder / "model.onnx"), 4), "bytes": told["bytes"]}
        if told["quantization"]:
            figure[name]["divergence"] = told["quantization"]["divergence"]["value"]
    lost = figure["float32"]["accuracy"] - figure["int8"]["accuracy"]
    return {**figure, "top_1_lost": round(lost, 4)}, lost <= 0.005


def accuracy(run: Path, model: Path) -> float:
    """Of a file on the images that the run never saw."""
    told = read_run(run)
    chosen = as_it_ran(spec_of_run(run), told)
    data, _ = open_data(chosen, Share(128), run, told["files"], None)
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    right = [session.run(["logits"], {"image": b["image"]})[0].argmax(-1) == b["label"] for b in data.heldout(SEEN)]
    return float(np.mean(np.concatenate(right)))
