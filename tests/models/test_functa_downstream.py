"""Models of latents: classifiers, a diffusion model and its sampler, against closed forms and plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from planform.backends import reference
from planform.compiler.elaborate import Steps, elaborate, sampler
from planform.compiler.parameters import count, initial
from planform.runtime.sample import Generator
from planform.spec import load, load_text

DIFFUSION = "spatial_functa_diffusion"
SMALL = ("rows=2", "columns=3", "features=2", "width=8", "heads=2", "layers=1", "waves=4", "classes=3")

GAUSSIAN = """
planform: 1
extends: spatial_functa_diffusion@small
model: gaussian
dims: {mean: 1.5, std: 0.3}
graphs:
  denoise:
    inputs:
      latent: float[batch, rows, columns, features]
    body: |
      a = cos(turn * level)
      s = sin(turn * level)
      rest = (latent - a * mean) / (square(a * std) + square(s))
      velocity = a * (s * rest) - s * (mean + a * square(std) * rest) + label * 0
"""


def test_sizes() -> None:
    assert count(elaborate(load("functa_classifier", "cifar10"))) == 1024 * 1024 * 3 + 3 * 1024 + 1024 * 10 + 10
    cells = count(elaborate(load("spatial_functa_classifier", "cifar10")))
    layer = 4 * 128 * 128 + 4 * 128 + 2 * 128 + 2 * 128 * 256 + 256 + 128
    assert cells == 16 * 128 + 128 + 64 * 128 + 12 * layer + 128 + (64 * 128 + 1) * 256 + 256 * 10 + 10


@pytest.mark.parametrize("eta, guidance", [(0.0, 0.0), (0.0, 2.5), (1.0, 1.0), (0.3, 4.0)])
def test_a_step_is_ddims(eta: float, guidance: float) -> None:
    """Against Song et al., arXiv:2010.02502, equations 12 and 16, in their own terms: alphas are squares of ours."""
    spec = load(DIFFUSION, "small", (*SMALL, f"eta={eta}", f"guidance={guidance}"))
    how = sampler(spec)
    assert how.given == ("label",) and dict(how.draws) == {"noise": "normal"}
    assert how.steps == Steps("latent", "normal", 50)
    rng = np.random.default_rng(0)
    assert all(w.path.startswith("slow.") for w in how.graph.weights)  # the average over training
    first = initial(how.graph.weights)  # its gates start as zeros: everything is stirred
    weights = {n: a + 0.3 * rng.standard_normal(a.shape) for n, a in first.items()}
    x, noise = rng.standard_normal((2, 4, 2, 3, 2))
    now, after = np.array([1.0, 0.9, 0.4, 0.02]), np.array([0.98, 0.5, 0.3, 0.0])
    label = np.array([0, 1, 2, 1])

    def velocity(label: np.ndarray) -> np.ndarray:
        graph = elaborate(spec, "denoise", "slow")
        found = reference.run(graph, weights, {"latent": x, "level": now, "label": label})
        return np.asarray(found["velocity"])

    free, known = velocity(np.full(4, 3)), velocity(label)
    assert np.abs(free - known).max() > 1e-2
    v = free + guidance * (known - free)
    alpha, before = (np.cos(np.pi / 2 * t)[:, None, None, None] ** 2 for t in (now, after))
    predicted = np.sqrt(alpha) * x - np.sqrt(1 - alpha) * v
    error = np.sqrt(1 - alpha) * x + np.sqrt(alpha) * v
    sigma = eta * np.sqrt((1 - before) / (1 - alpha)) * np.sqrt(1 - alpha / before)
    want = np.sqrt(before) * predicted + np.sqrt(np.maximum(1 - before - sigma**2, 0)) * error + sigma * noise
    given = {"latent": x, "now": now, "after": after, "label": label, "noise": noise}
    np.testing.assert_allclose(reference.run(how.graph, weights, given)["latent_after"], want, atol=1e-6)
    if eta == 0:
        other = reference.run(how.graph, weights, {**given, "noise": -noise})
        np.testing.assert_array_equal(other["latent_after"], reference.run(how.graph, weights, given)["latent_after"])


@pytest.mark.parametrize("eta, steps", [(0.0, 100), (1.0, 500)])  # ancestral steps are too narrow until they are many
def test_samples_have_the_distribution_that_was_learned(eta: float, steps: int) -> None:
    """With the exact denoiser of normal data, samples are normal of that mean and width, class or not."""
    made = Generator(load_text(GAUSSIAN, overrides=(f"eta={eta}",)), {})
    label = np.arange(300) % 10
    found = made.sample({"label": label}, 300, seed=3, steps=steps)
    assert found.shape == (300, 4, 4, 4)
    assert found.mean() == pytest.approx(1.5, abs=0.02) and found.std() == pytest.approx(0.3, rel=0.05)
    np.testing.assert_array_equal(made.sample({"label": label}, 300, seed=3, steps=steps), found)
    other = made.sample({"label": label}, 70, seed=4, steps=10)
    assert other.shape[0] == 70 and len({float(x.flat[0]) for x in other}) == 70  # no two alike, across batches too
