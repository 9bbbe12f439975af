"""A residual network learns: Fashion-MNIST, beside a linear model and a plain network of convolutions."""

from __future__ import annotations

import statistics
from functools import cache
from pathlib import Path
from typing import Any

from planform.runtime.functa.curves import curve
from planform.runtime.functa.images import write_png
from planform.runtime.metrics import read_metrics
from tests.evidence import row
from tests.evidence.commands import train
from tests.evidence.functa.images import fashion_mnist, workspace

STEPS, BATCH, SEEDS = 3000, 64, (0, 1, 2)
MEASURED = (f"train.evaluate.batches={10_000 // BATCH}", "train.evaluate.every=500")
"""All whole batches of the 10,000 images held out, six times on the way."""
CURVES = Path("runs/evidence/resnet")
"""Where the row keeps a curve of each seed."""

HEAD = """
planform: 1
model: {name}
dims: {{classes: 10}}
graphs:
  classify:
    inputs:
      image: float[batch, 28, 28, 1]
    body: |
      logits = {body}
train:
  data: images(image, label, shift=2, flip=true, mean=0.29, std=0.35)
  loss: cross_entropy(classify(image).logits, label)
  optimizer: |
    sgd(warmup_cosine(0.05, warmup=100, end=0), momentum=0.9, nesterov=true, weight_decay=5e-4)
  evaluate:
    metrics:
      accuracy: accuracy(classify(image).logits, label)
"""
BODIES = {
    "linear": 'image >> "b h w c -> b (h w c)" >> linear(classes, bias=true)',
    "plain": "image >> conv2d(32, 3, bias=true) >> relu >> max_pool(2) >> conv2d(64, 3, bias=true) >> relu"
    ' >> max_pool(2)\n               >> "b h w c -> b (h w c)" >> linear(128, bias=true) >> relu'
    " >> linear(classes, bias=true)",
}


@cache
def trained(name: str, seed: int) -> Path:
    """The run of one of the three."""
    folder = workspace() / "resnet" / f"{name}-{seed}"
    spec: str | Path = "resnet_small"
    if name != "residual":
        spec = workspace() / f"{name}.yaml"
        spec.write_text(HEAD.format(name=name, body=BODIES[name]))
    train(spec, folder, MEASURED, files=fashion_mnist(), steps=STEPS, batch=BATCH, seed=seed)
    return folder


def learned(name: str, seed: int) -> dict[int, float]:
    """Accuracy on the images held out, by step. The curve is kept as a picture."""
    told = read_metrics(trained(name, seed))
    found = {line["step"]: line["accuracy"] for line in told if "accuracy" in line}
    drawn = curve(list(found.items()), f"Fashion-MNIST, {name}, seed {seed}: part of the test images right", "steps")
    write_png(CURVES / f"{name}-{seed}.png", drawn)
    return {step: round(value, 4) for step, value in found.items()}


@row(
    "replicator_models",
    "resnet_learns",
    f"Fashion-MNIST after {STEPS:,} steps of {BATCH} images, three seeds: the worst residual network "
    "(`resnet_small`) above the best linear model and the best plain network of convolutions; accuracy on the test "
    "set, its curves kept",
    30,
)
def resnet_learns() -> tuple[Any, bool]:
    curves = {name: [learned(name, seed) for seed in SEEDS] for name in ("linear", "plain", "residual")}
    last = {name: [each[STEPS] for each in found] for name, found in curves.items()}
    figure = {
        n: {"mean": round(statistics.mean(a), 4), "seeds": a, "curves": curves[n]} for n, a in last.items()
    }  # fmt: skip
    return {**figure, "kept": str(CURVES)}, min(last["residual"]) > max(*last["linear"], *last["plain"])
