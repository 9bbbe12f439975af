"""Residual networks against transformers' and flax's: logits, gradients, running statistics, in and out of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from tests.backends.xla_graphs import jit
from transformers import ResNetConfig, ResNetForImageClassification

from planform.backends.xla import Policy, from_logical, lower, storage, to_logical
from planform.compiler.elaborate import elaborate
from planform.compiler.parameters import count
from planform.compiler.program import program
from planform.compiler.weights import weights_map
from planform.runtime.exchange import export_folder, import_folder
from planform.runtime.run import parameters_of_run, spec_of_run
from planform.spec import load

PUBLISHED = {
    "resnet18@18": 11_689_512, "resnet18@34": 21_797_672, "resnet50@50": 25_557_032, "resnet50@101": 44_549_160,
    "resnet50@152": 60_192_808,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name: str) -> None:
    assert count(elaborate(load(name), "classify")) == PUBLISHED[name]


def test_stages_of_resnet50_are_written_out() -> None:
    """Together they fit into what one program may hold: what short stages leave, longer ones take."""
    names = storage(program(load("resnet50")).updates[0].loss, Policy())
    assert len(names) == 53 * 5 + 2 and not any(":" in n for n in names)


def theirs(kind: str) -> Any:
    """A small one whose norms and statistics are not those that they start with."""
    torch.manual_seed(0)
    wide = 4 if kind == "bottleneck" else 1
    config = ResNetConfig(
        num_labels=7, embedding_size=8, hidden_sizes=[8 * wide * 2**i for i in range(4)], depths=[2, 3, 2, 2],
        layer_type=kind,
    )  # fmt: skip
    model = ResNetForImageClassification(config).eval()
    for name, p in [*model.named_parameters(), *model.named_buffers()]:
        if "normalization" in name and p.is_floating_point():
            p.data.uniform_(0.5, 1.5) if not name.endswith(("bias", "mean")) else p.data.uniform_(-0.3, 0.3)
    return model


KINDS = {"basic": "resnet18", "bottleneck": "resnet50"}
IMAGES = np.random.default_rng(0).standard_normal((4, 67, 61, 3)).astype(np.float32)  # nothing divides them
LABELS = np.asarray([3, 0, 6, 3], np.int32)


def backward(model: Any) -> tuple[np.ndarray, float, dict[str, np.ndarray]]:
    """(logits, loss, gradients by their names) of the images."""
    model.zero_grad()
    logits = model(pixel_values=torch.tensor(IMAGES.transpose(0, 3, 1, 2))).logits
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS, dtype=torch.int64))
    loss.backward()
    found = {n: p.grad.numpy() for n, p in model.named_parameters()}
    return logits.detach().numpy(), float(loss.detach()), found


def close(got: Any, want: Any, tolerance: float) -> None:
    np.testing.assert_allclose(got, want, atol=tolerance * float(np.abs(want).max()), rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_transformers_computes(kind: str, tmp_path: Path) -> None:
    model = theirs(kind)
    model.save_pretrained(tmp_path / "theirs")
    run = import_folder(tmp_path / "theirs", KINDS[kind], tmp_path / "run")
    spec, parameters = spec_of_run(run), dict(parameters_of_run(run))
    weights = weights_map(spec, "huggingface").by_name()

    graph = elaborate(spec, "classify")
    given = from_logical(parameters.__getitem__, graph, Policy())
    logits = jit(lower(graph, Policy()))(given, {"image": IMAGES})["logits"]
    close(logits, backward(model)[0], 1e-5)

    # In training: the batch's statistics, which the running ones follow.
    loss = program(spec).updates[0].loss
    state = from_logical(parameters.__getitem__, loss, Policy())
    step = lower(loss, Policy())
    trained = {n: v for n, v in state.items() if not n.endswith((".mean", ".variance"))}

    def of(p: dict[str, Any]) -> tuple[Any, Any]:
        found = step({**state, **p}, {"image": IMAGES, "label": LABELS})
        return found["loss"], found

    (value, found), grads = jit(jax.value_and_grad(of, has_aux=True))(trained)
    model.train()
    _, want, gradients = backward(model)
    assert float(value) == pytest.approx(want, rel=1e-5)
    ours = to_logical({n: np.asarray(g) for n, g in grads.items()})
    for name, gradient in gradients.items():
        for parameter, array in weights[name].to_ours(gradient):
            close(ours[parameter], array, 1e-4)
    after = to_logical({n: np.asarray(v) for n, v in found.items() if n in state})
    buffers, pixels = dict(model.named_buffers()), 4 * 34 * 31
    for name in ("mean", "variance"):
        (path,) = (p for p in after if p.endswith(f"stem.unit.batch_norm.{name}"))
        new = buffers[
            f"resnet.embedder.embedder.normalization.running_{'var' if name == 'variance' else 'mean'}"
        ].numpy()
        if name == "variance":  # torch's follows the estimate with n - 1, flax's and ours that with n
            new = 0.9 * parameters[path] + (new - 0.9 * parameters[path]) * (pixels - 1) / pixels
        close(after[path], new, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind: str, tmp_path: Path) -> None:
    model = theirs(kind)
    model.save_pretrained(tmp_path / "theirs")
    run = import_folder(tmp_path / "theirs", KINDS[kind], tmp_path / "run")
    export_folder(spec_of_run(run), parameters_of_run(run), tmp_path / "ours")
    again = ResNetForImageClassification.from_pretrained(tmp_path / "ours").eval()
    images = torch.tensor(IMAGES.transpose(0, 3, 1, 2))
    with torch.no_grad():
        assert torch.equal(again(images).logits, model(images).logits)
