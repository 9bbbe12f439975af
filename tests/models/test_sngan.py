"""SN-GAN: the networks written out in torch, and its training program on one device, on eight, and resumed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.runtime.training import ROOT, digest

from planform.backends.reference import run
from planform.compiler.elaborate import elaborate
from planform.compiler.parameters import count, initial
from planform.compiler.program import program
from planform.runtime.metrics import read_metrics
from planform.runtime.run import parameters_of_run
from planform.spec import load


class Torch:
    """The networks of arXiv:1802.05637 at 128 pixels, channels first, on weights by our names."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.w = {n: torch.tensor(a, dtype=torch.float64) for n, a in weights.items()}

    def conv(self, x: Any, path: str) -> Any:
        weight = self.weight(path).permute(3, 2, 0, 1)
        return F.conv2d(x, weight, self.w[f"{path}.bias"], padding=weight.shape[-1] // 2)

    def weight(self, path: str, out: int = -1) -> Any:
        """Over the norm that one step of power iteration finds."""
        w, u = self.w[f"{path}.weight"], self.w.get(f"{path}.spectral_norm.u")
        if u is None:
            return w
        matrix = w.movedim(out, 0).reshape(len(u), -1)
        v = F.normalize(matrix.T @ u, dim=0, eps=1e-12)
        u = F.normalize(matrix @ v, dim=0, eps=1e-12)
        return w / (u @ matrix @ v)

    def norm(self, x: Any, path: str, label: Any) -> Any:
        mean, variance = (self.w[f"{path}.batch_norm.{n}"] for n in ("mean", "variance"))
        x = F.batch_norm(x, mean, variance, eps=2e-5)
        scale, shift = (self.w[f"{path}.{n}.weight"][label][..., None, None] for n in ("scale", "shift"))
        return x * scale + shift

    def generate(self, z: Any, label: Any) -> Any:
        x = z @ self.w["generator.linear.weight"] + self.w["generator.linear.bias"]
        x = x.reshape(len(z), 4, 4, -1).permute(0, 3, 1, 2)
        for i in range(5):
            path = "generator.grow.up" + (f"_{i + 1}" if i else "")
            h = F.interpolate(F.relu(self.norm(x, f"{path}.norm_1", label)), scale_factor=2)
            h = F.relu(self.norm(self.conv(h, f"{path}.conv_1.conv2d"), f"{path}.norm_2", label))
            x = self.conv(F.interpolate(x, scale_factor=2), f"{path}.shortcut") + self.conv(h, f"{path}.conv_2.conv2d")
        mean, variance, scale, bias = (
            self.w[f"generator.batch_norm.{n}"] for n in ("mean", "variance", "scale", "bias")
        )
        x = F.relu(F.batch_norm(x, mean, variance, scale, bias, eps=2e-5))
        return torch.tanh(self.conv(x, "generator.conv2d")).permute(0, 2, 3, 1)

    def judge(self, image: Any, label: Any) -> Any:
        x = image.permute(0, 3, 1, 2)
        for i in range(6):
            name = ("enter", "down", "down_2", "down_3", "down_4", "stay")[i]
            path = f"discriminator.shrink.{name}"
            h = self.conv(x if i == 0 else F.relu(x), f"{path}.conv_1.conv2d")
            h = self.conv(F.relu(h), f"{path}.conv_2.conv2d")
            if i == 0:
                x, h = self.conv(F.avg_pool2d(x, 2), f"{path}.shortcut.conv2d"), F.avg_pool2d(h, 2)
            elif i < 5:
                x, h = F.avg_pool2d(self.conv(x, f"{path}.shortcut.conv2d"), 2), F.avg_pool2d(h, 2)
            x = x + h
        h = F.relu(x).sum((2, 3))
        linear = (h @ self.weight("discriminator.linear") + self.w["discriminator.linear.bias"])[:, 0]
        return linear + (h * self.weight("discriminator.projection", 0)[label]).sum(1)


@pytest.fixture(scope="module")
def tiny() -> Torch:
    rng = np.random.default_rng(0)
    graphs = [elaborate(load("sngan", "tiny"), g) for g in ("generator", "discriminator")]
    weights = {n: a for g in graphs for n, a in initial(g.weights).items()}
    stirred = {n: a + rng.uniform(-0.3, 0.3, a.shape) * (a.ndim == 1 or "norm" in n) for n, a in weights.items()}
    return Torch(stirred)


def weights_of(model: Torch) -> dict[str, np.ndarray]:
    return {n: a.numpy() for n, a in model.w.items()}


def test_the_generator_is_torchs(tiny: Torch) -> None:
    rng = np.random.default_rng(1)
    z, label = rng.normal(size=(2, 128)), np.array([3, 9])
    got = run(elaborate(load("sngan", "tiny"), "generator"), weights_of(tiny), {"z": z, "label": label})["image"]
    want = tiny.generate(torch.tensor(z), torch.tensor(label)).numpy()
    assert want.shape == (2, 128, 128, 3) and np.abs(want).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11)


def test_the_discriminator_is_torchs(tiny: Torch) -> None:
    image, label = np.random.default_rng(2).uniform(-1, 1, (2, 128, 128, 3)), np.array([0, 7])
    graph = elaborate(load("sngan", "tiny"), "discriminator")
    got = run(graph, weights_of(tiny), {"image": image, "label": label})["score"]
    np.testing.assert_allclose(got, tiny.judge(torch.tensor(image), torch.tensor(label)).numpy(), rtol=1e-9)


def test_published_sizes() -> None:
    """The generators, counted by hand from the layers of the authors' code."""
    for name, size, top in (("sngan", "imagenet", 16), ("sngan_64", "imagenet", 8)):
        ch, classes, spec = 64, 1000, load(name, size)
        widths = [16 * ch, *(m * ch for m in (16, 8, 4, 2, 1) if m <= top)]
        ups = sum(9 * (a + b) * b + 2 * b + a * b + b + 2 * classes * (a + b) for a, b in zip(widths, widths[1:]))
        start = 129 * 16 * widths[0]
        assert count(elaborate(spec, "generator")) == start + ups + 2 * ch + 27 * ch + 3


# With `hold` the rate is the same in a run of two steps and in one of four.
SMALL = ("ch=4", "wide=4", "noise=8", "hold=100", "train.batch=8", "precision.compute=float64",
         "train.evaluate.batches=1", "train.checkpoint.every=2")  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    path: Path = tmp_path_factory.mktemp("pictures") / "pictures.npz"
    np.savez(path, images=rng.integers(0, 256, (64, 28, 28, 1), np.uint8), labels=rng.integers(0, 10, 64))
    return path


def trained(folder: Path, pictures: Path, steps: int, mesh: str = "data=1") -> Any:
    """Weights after so many steps, in a process of its own with eight devices."""
    command = [sys.executable, "-m", "planform", "train", "sngan_32@small", "--files", str(pictures), "--out",
               str(folder), "--mesh", mesh, "--steps", str(steps), "--quiet",
               *(w for o in SMALL for w in ("--set", o))]  # fmt: skip
    path = {"PYTHONPATH": str(ROOT / ".pkg"), "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    subprocess.run(command, check=True, env={**os.environ, **path}, timeout=600)
    return parameters_of_run(folder)


@pytest.mark.slow
def test_eight_devices_train_as_one_and_a_resumed_run_as_a_whole(pictures: Path, tmp_path: Path) -> None:
    one = trained(tmp_path / "one", pictures, 4)
    trained(tmp_path / "parts", pictures, 2)
    assert digest(trained(tmp_path / "parts", pictures, 4)) == digest(one)
    for name, array in trained(tmp_path / "eight", pictures, 4, "data=8").items():
        # A bias before a batch norm has no gradient but rounding, which Adam makes steps of, and moves a mean.
        free = "generator.grow" in name and name.endswith("bias") or name.endswith("batch_norm.mean")
        np.testing.assert_allclose(array, one[name], rtol=1e-8, atol=1e-8 if free else 1e-10, err_msg=name)
    first = initial([w for u in program(load("sngan_32", "small", SMALL)).updates for w in u.loss.weights])
    assert max(np.abs(one[n] - a).max() for n, a in first.items()) > 1e-3
    assert {"generator/loss", "discriminator/loss"} <= set(read_metrics(tmp_path / "one")[0])
