"""A residual network learns: Fashion-MNIST, beside a linear model and a plain network of convolutions."""

from __future__ import annotations

import statistics
from functools import cache
from pathlib import Path
from typing import Any

from planform.runtime.evaluate import evaluate_run
from tests.evidence import row
from tests.evidence.commands import train
from tests.evidence.functa.images import fashion_mnist, workspace

STEPS, BATCH, SEEDS = 3000, 64, (0, 1, 2)

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
    every: 1000
    batches: 156
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
    train(spec, folder, files=fashion_mnist(), steps=STEPS, batch=BATCH, seed=seed)
    return folder


def accuracy(folder: Path) -> float:
    """On the 10,000 images that are held out (156 whole batches of them)."""
    return float(evaluate_run(folder, batches=10_000 // BATCH)["accuracy"])


@row(
    "replicator_models",
    "resnet_learns",
    f"Fashion-MNIST after {STEPS:,} steps of {BATCH} images, three seeds: the worst residual network "
    "(`resnet_small`) above the best linear model and the best plain network of convolutions; accuracy on the test set",
    30,
)
def resnet_learns() -> tuple[Any, bool]:
    found = {n: [round(accuracy(trained(n, s)), 4) for s in SEEDS] for n in ("linear", "plain", "residual")}
    figure = {n: {"mean": round(statistics.mean(a), 4), "seeds": a} for n, a in found.items()}
    return figure, min(found["residual"]) > max(*found["linear"], *found["plain"])
