"""Parameters that two updates group differently."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.runtime.training import LIGHT

from planform.backends.xla import Policy, initialise, storage
from planform.compiler.program import program
from planform.runtime.regroup import view
from planform.spec import load_text


@pytest.mark.parametrize("stored, wanted", [(1, 2), (2, 1), (1, 5), (5, 2), (2, 2)])
def test_view(stored, wanted):
    graph = program(load_text(LIGHT, overrides=["layers=5"])).updates[0].loss
    have, want = Policy(unroll=stored), Policy(unroll=wanted)
    parameters = initialise(graph, have, 0)
    found = view(parameters, storage(graph, have), storage(graph, want))
    truth = initialise(graph, want, 0)
    assert set(found) == set(truth)
    for name in truth:
        np.testing.assert_array_equal(found[name], truth[name])


def test_gradients_come_back_through_a_view():
    graph = program(load_text(LIGHT, overrides=["layers=5"])).updates[0].loss
    have, want = storage(graph, Policy(unroll=1)), storage(graph, Policy(unroll=2))
    parameters = initialise(graph, Policy(unroll=1), 0)
    name = next(n for n in want if n.startswith("lm.layer[1:") and "gate" in n)  # layers 1, 3

    def f(p):
        return jnp.sum(view(p, have, want)[name] ** 2)

    gradients = jax.grad(f)(parameters)
    (stack,) = [n for n in gradients if np.any(gradients[n])]
    found = np.asarray(gradients[stack])
    np.testing.assert_allclose(found[[1, 3]], 2 * np.asarray(parameters[stack])[[1, 3]])
    assert not found[[0, 2, 4]].any()
