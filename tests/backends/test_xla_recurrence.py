"""Every form of a linear recurrence is the same function, and so is its gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from planform.backends.xla import Policy
from planform.backends.xla.rules.recurrence import CHUNK, FORMS, bounded_sqrt, recur
from planform.compiler.ops.recurrence import GRADIENT_BOUND

TIMES = [1, CHUNK - 1, CHUNK, 2 * CHUNK + 5]  # within a chunk, one exactly, several and a rest


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("form", FORMS)
def test_forms_are_the_loop(form: str, time: int) -> None:
    rng = np.random.default_rng(time)
    a, b = rng.uniform(0, 1, (2, time, 3)), rng.standard_normal((2, time, 3))
    a[0, time // 2] = 0  # a document begins
    start, weights = rng.standard_normal((2, 3)), rng.standard_normal((2, time, 3))
    want, h = np.empty_like(b), start
    for t in range(time):
        want[:, t] = h = a[:, t] * h + b[:, t]
    with jax.enable_x64(True):
        got = recur(form, *map(jnp.asarray, (a, b, start)))
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)

        def total(f: str, *given: jax.Array) -> jax.Array:
            return (recur(f, *given) * weights).sum()

        grads = jax.grad(total, argnums=(1, 2, 3))(form, *map(jnp.asarray, (a, b, start)))
    # By the definition: g_t = w_t + a_(t+1) g_(t+1), da = g h_(t-1), db = g, dstart = a_0 g_0.
    g, after = np.empty_like(b), np.zeros_like(start)
    for t in reversed(range(time)):
        g[:, t] = weights[:, t] + after
        after = a[:, t] * g[:, t]
    before = np.concatenate([start[:, None], want[:, :-1]], 1)
    for found, exact in zip(grads, (g * before, g, after)):
        np.testing.assert_allclose(found, exact, rtol=1e-11, atol=1e-12)


def test_the_slope_of_the_root_is_bounded() -> None:
    slope = jax.vmap(jax.grad(bounded_sqrt))
    np.testing.assert_allclose(
        slope(jnp.array([0.0, 1e-12, 1e-2, 1.0])), [GRADIENT_BOUND, GRADIENT_BOUND, 5.0, 0.5], rtol=1e-5
    )


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="recurrence is sequential, associative or chunked, not 'fast'"):
        Policy(recurrence="fast")  # type: ignore[arg-type]
