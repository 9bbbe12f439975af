"""The images of the rows, and fields trained on them once for several rows."""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from planform.runtime.data import load_signals
from planform.runtime.functa.encode import encode
from planform.runtime.functa.functaset import Functaset
from planform.runtime.train import train
from planform.spec import load

PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")

NARROW = (
    "width=32",
    "depth=4",
    "rate=0.002",
    "train.inner.rates=learned(latent, low=0.1, high=1.0)",
    "train.inner.remat=false",
    "train.evaluate.every=1000000",
)
"""A narrower field than the paper's, for minutes on two cores in place of days; steps to fit a latent that are large
from the start, with which both fields get on faster."""
LATENTS = {"spatial_functa": ("rows=4", "columns=4", "features=4"), "functa": ("features=64",)}
"""64 numbers an image, either way."""
STEPS, COUNT = 500, 5000
"""Training steps of a field, of 16 images; latents to learn on, and as many held out."""


PICTURES = Path("runs/evidence/functa")
"""Where rows keep pictures for eyes."""


@functools.cache
def workspace() -> Path:
    """A folder for as long as the process runs."""
    holder = tempfile.TemporaryDirectory(prefix="planform-functa-")
    globals()["_holder"] = holder
    return Path(holder.name)


@functools.cache
def fashion_mnist() -> Path:
    """The folder of Debian's package: where it is installed, or downloaded by apt and unpacked, without root.

    Raises: RuntimeError where there is neither.
    """
    asked = Path(os.environ.get("PLANFORM_FASHION_MNIST", INSTALLED))
    if (asked / "train-images-idx3-ubyte.gz").is_file():
        return asked
    folder = workspace() / "debian"
    folder.mkdir()
    try:
        subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, check=True, capture_output=True, timeout=600)
        (archive,) = folder.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True, capture_output=True)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise RuntimeError(
            f"Fashion-MNIST is missing: install Debian's {PACKAGE}, or name its folder in PLANFORM_FASHION_MNIST"
        ) from error
    return folder / INSTALLED.relative_to("/")


@functools.cache
def digits() -> Path:
    """scikit-learn's 1,797 digits of 8 x 8."""
    from sklearn.datasets import load_digits

    found = load_digits()
    file = workspace() / "digits.npz"
    np.savez(file, images=(found.images / 16).astype(np.float32), labels=found.target.astype(np.int32))
    return file


@functools.cache
def photographs(side: int = 16) -> Path:
    """scikit-learn's two photographs (427 x 640) in squares of `side`, in colour: 2,080 of 16."""
    from sklearn.datasets import load_sample_images

    parts = []
    for image in load_sample_images().images:
        rows, columns = (n // side for n in image.shape[:2])
        cut = image[: rows * side, : columns * side].reshape(rows, side, columns, side, 3)
        parts.append(cut.transpose(0, 2, 1, 3, 4).reshape(-1, side, side, 3))
    file = workspace() / f"photographs-{side}.npz"
    np.savez(file, images=np.concatenate(parts))
    return file


CIFAR = 32
"""Pixels of a side in CIFAR's files."""


@functools.cache
def scenes(articles: int, copies: int, heldout: int) -> Path:
    """Fashion-MNIST's articles before scikit-learn's photographs, in files like CIFAR-10's and of its size, in colour:
    what an image is of lies among other things, at no place of its own. Each pixel is the difference of the two, as in
    MNIST-M, which is made so of MNIST and photographs (arXiv:1505.07818).

    articles  of the training images, each `copies` times: somewhere in the frame, mirrored or not, over part of a
              photograph's left three quarters
    heldout   articles of the test images, over what is right of them
    """
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    views = load_sample_images().images
    border = views[0].shape[1] * 3 // 4
    folder = workspace() / f"scenes-{articles}-{copies}-{heldout}"
    folder.mkdir()
    train, test = load_signals(fashion_mnist(), 2, 1)
    assert test is not None
    for file, part, count, times, backgrounds in (
        ("data_batch_1.bin", train, articles, copies, [v[:, :border] for v in views]),
        ("test_batch.bin", test, heldout, 1, [v[:, border:] for v in views]),
    ):
        chosen = np.tile(np.arange(count), times)
        made = [_scene(image[..., 0], backgrounds, rng) for image in part["values"][chosen]]
        planes = np.stack(made).transpose(0, 3, 1, 2).reshape(len(chosen), -1)
        np.concatenate([part["labels"][chosen, None].astype(np.uint8), planes], 1).tofile(folder / file)
    return folder


def _scene(article: np.ndarray, backgrounds: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """An article, uint8[h, w], somewhere before somewhere of a photograph: uint8[32, 32, 3]."""
    behind = backgrounds[rng.integers(len(backgrounds))]
    top, left = (rng.integers(n - CIFAR + 1) for n in behind.shape[:2])
    out = behind[top : top + CIFAR, left : left + CIFAR].astype(np.int16)
    (h, w), mirrored = article.shape, rng.random() < 0.5
    y, x = rng.integers(CIFAR - h + 1), rng.integers(CIFAR - w + 1)
    out[y : y + h, x : x + w] -= (article[:, ::-1] if mirrored else article)[..., None]
    return np.abs(out).astype(np.uint8)


@functools.cache
def trained(model: str, files: Path, steps: int, *more: str) -> Path:
    """The run of a narrow field on some images."""
    name = "-".join((model, files.stem, str(steps), *(m.replace("=", "") for m in more)))
    overrides = (*NARROW, *LATENTS[model], *more)
    folder = workspace() / "runs" / name
    train(load(model, "small", overrides), folder, overrides=overrides, files=files, steps=steps, quiet=True)
    return folder


@functools.cache
def latents(model: str, files: Path, steps: int, limit: int | None = None, *more: str) -> Functaset:
    """The functaset of such a run."""
    run = trained(model, files, steps, *more)
    return encode(run, workspace() / "sets" / f"{run.name}-{limit}", limit=limit, batch=128)
