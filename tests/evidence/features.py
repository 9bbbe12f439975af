"""How far the distribution of pictures is from that of real ones: in the features of a classifier."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort

from planform.compiler.program import program
from planform.runtime.run import spec_of_run


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The distance of two normal distributions with the moments of features [rows, n] (arXiv:1706.08500)."""
    (m, c), (n, d) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
    roots = np.sqrt(np.maximum(np.linalg.eigvals(c @ d).real, 0))  # of a product of two covariances: none is negative
    return float(np.sum((m - n) ** 2) + np.trace(c) + np.trace(d) - 2 * np.sum(roots))


class Features:
    """The last hidden layer of scikit-learn's perceptron, taught on real pictures, values from 0 to 1: pixels -> 128 ->
    64 -> classes."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        self.net = MLPClassifier((128, 64), batch_size=128, max_iter=8, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # eight epochs are enough for features
            self.net.fit(images.reshape(len(images), -1), labels)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        x = np.clip(images.reshape(len(images), -1), 0, 1)
        for w, b in zip(self.net.coefs_[:-1], self.net.intercepts_[:-1]):
            x = np.maximum(x @ w + b, 0)
        return np.asarray(x, np.float64)

    def correct(self, images: np.ndarray, labels: np.ndarray) -> float:
        """The part of pictures that it gives these classes."""
        return float(np.mean(self.net.predict(np.clip(images.reshape(len(images), -1), 0, 1)) == labels))


class Residual:
    """What a trained `resnet_small` sees in pictures [n, 28, 28] of values from 0 to 1: its last features, averaged
    over the places. `model` is the ONNX file of the run with the outputs `logits` and `features`."""

    def __init__(self, run: Path, model: Path) -> None:
        given = program(spec_of_run(run)).data.arguments
        self.mean, self.std = float(given["mean"]), float(given["std"])
        self.session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.concatenate([f.mean((1, 2), dtype=np.float64) for f in self._run("features", images)])

    def correct(self, images: np.ndarray, labels: np.ndarray) -> float:
        """The part of pictures that it gives these classes."""
        return float(np.mean(np.concatenate([r.argmax(-1) for r in self._run("logits", images)]) == labels))

    def _run(self, output: str, images: np.ndarray) -> Iterator[np.ndarray]:
        seen = ((images.reshape(-1, 28, 28, 1) - self.mean) / self.std).astype(np.float32)
        for at in range(0, len(seen), 100):
            yield self.session.run([output], {"image": seen[at : at + 100]})[0]
