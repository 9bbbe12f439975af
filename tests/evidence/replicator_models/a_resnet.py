"""ResNet: counts, and parity with transformers' and flax's at full size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from planform.backends.xla import Policy, from_logical, lower, to_logical
from planform.compiler.elaborate import elaborate
from planform.compiler.parameters import count, initial
from planform.compiler.program import program
from planform.spec import load
from tests.benchmarks.hand.resnet import ResNet, to_torch, variables
from tests.evidence import row
from tests.models.test_resnet import PUBLISHED

BATCH, SIDE, SIZES = 4, 64, 1000
Arrays = Mapping[str, np.ndarray]
Answer = tuple[np.ndarray, float, Arrays]
"""(logits out of training, the loss in training, its gradients by our names)"""


@row("replicator_models", "counts", "parameters of ResNet 18, 34, 50, 101 and 152, exactly", 0.2)
def counts() -> tuple[Any, bool]:
    found = {name: count(elaborate(load(name), "classify")) for name in PUBLISHED}
    return found, found == PUBLISHED


def parameters() -> dict[str, np.ndarray]:
    """First values, with norms and statistics that count."""
    rng = np.random.default_rng(0)
    found = initial(elaborate(load("resnet50"), "classify").weights)
    for name, a in found.items():
        if "batch_norm" in name:
            spread = (-0.2, 0.2) if name.endswith(("mean", "bias")) else (0.6, 1.4)
            found[name] = rng.uniform(*spread, a.shape)
    return {n: np.asarray(a, np.float64) for n, a in found.items()}


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    image = rng.standard_normal((BATCH, SIDE, SIDE, 3))
    return image, rng.integers(0, SIZES, BATCH).astype(np.int32)


def ours(given: Arrays) -> Answer:
    image, label = data()
    spec, double = load("resnet50"), Policy(compute="f64")
    graph, loss = elaborate(spec, "classify"), program(spec).updates[0].loss
    stored = from_logical(given.__getitem__, graph, double)
    rest = jax.jit(lower(graph, double))(stored, {"image": image})["logits"]
    trained = {k: v for k, v in stored.items() if not k.endswith((".mean", ".variance"))}

    def of(p: Any) -> Any:
        return lower(loss, double)({**stored, **p}, {"image": image, "label": label})["loss"]

    value, gradients = jax.jit(jax.value_and_grad(of))(trained)
    return np.asarray(rest), float(value), to_logical(gradients)


def of_torch(given: Arrays) -> Answer:
    image, label = data()
    model = ResNetForImageClassification(ResNetConfig(num_labels=SIZES)).double()
    weights = to_torch(model, given)
    pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        rest = model.eval()(pixel_values=pixels).logits.numpy()
    logits = model.train()(pixel_values=pixels).logits
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(label.astype(np.int64)))
    loss.backward()
    by_name = weights.by_name()
    gradients = {
        k: a for n, p in model.named_parameters() for k, a in by_name[n].to_ours(p.grad.numpy())  # type: ignore[union-attr]
    }  # fmt: skip
    return rest, float(loss.detach()), gradients


def of_flax(given: Arrays) -> Answer:
    image, label = data()
    held = variables(given)
    rest = jax.jit(ResNet(training=False).apply)(held, image)

    def of(p: Any) -> Any:
        logits, _ = ResNet().apply({**held, "params": p}, image, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    value, gradients = jax.jit(jax.value_and_grad(of))(held["params"])
    named = {}
    for name in given:
        if name.endswith((".mean", ".variance")):
            continue
        one = variables({name: given[name]})["params"]  # where it lies over there
        place = jax.tree_util.tree_leaves_with_path(one)[0][0]
        at: Any = gradients
        for key in place:
            at = at[key.key]
        named[name] = np.asarray(at)
    return np.asarray(rest), float(value), named


def apart(got: Any, want: Any) -> float:
    return float(np.max(np.abs(np.asarray(got) - want)) / np.max(np.abs(want)))


@row(
    "replicator_models",
    "parity_resnet",
    f"ResNet-50 at full size, {BATCH} images of {SIDE} x {SIDE}: logits out of training, the loss and each gradient "
    "in it, within 1e-4 (of each tensor's largest) of transformers' ResNet in torch and of one in flax; in float64, as "
    "fifty norms of few examples tell apart roundings to float32 by more than that",
    2,
)
def parity() -> tuple[Any, bool]:
    given = parameters()
    figure: dict[str, Any] = {}
    peers: dict[str, Callable[[Arrays], Answer]] = {"transformers": of_torch, "flax": of_flax}
    with jax.enable_x64(True):
        mine = ours(given)
        answers = {name: peer(given) for name, peer in peers.items()}
    for name, theirs in answers.items():
        found = {
            "logits": apart(mine[0], theirs[0]),
            "loss_in_training": abs(mine[1] - theirs[1]) / abs(theirs[1]),
            "gradients": max(apart(mine[2][n], g) for n, g in theirs[2].items()),
        }
        figure[name] = {k: float(f"{v:.1e}") for k, v in found.items()}
    return figure, all(v <= 1e-4 for f in figure.values() for v in f.values())
