"""Optimizers, schedules and selectors, against their formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.runtime.training import SPEC

from planform.backends.xla import Policy, storage
from planform.compiler.program import program
from planform.compiler.recipes import OPTIMIZERS, SCHEDULES, Recipe
from planform.runtime.optimizer import both, mask, optimizer, schedule
from planform.spec import load_text


def recipe(name, **arguments):
    table = OPTIMIZERS if name in OPTIMIZERS else SCHEDULES
    return Recipe(name, {**table[name].arguments, **arguments})


@pytest.fixture(scope="module")
def stored():
    loss = program(load_text(SPEC, overrides=["layers=5"])).updates[0].loss
    return storage(loss, Policy(unroll=1))


def small(stored):
    rng = np.random.default_rng(0)
    names = [n for n in stored if n == "table" or "query" in n or "norm" in n][:6]
    return {n: jnp.asarray(rng.standard_normal(stored[n].type.shape({})), jnp.float32) for n in names}


def steps_of(transformation, values, count=3):
    """The values after a few steps on the gradients sin(value), in JAX."""
    state = transformation.init(values)
    for _ in range(count):
        changes, state = transformation.update({n: jnp.sin(v) for n, v in values.items()}, state, values)
        values = {n: v + changes[n] for n, v in values.items()}
    return values


@pytest.mark.parametrize("name, halfway, last", [
    ("warmup_cosine", 0.1 + 0.9 * 0.5, 0.1), ("warmup_linear", 0.5, 0.0),
])  # fmt: skip
def test_schedules(name, halfway, last):
    rate = schedule(recipe(name, peak=2.0, warmup=10), 110)
    found = [float(rate(n)) for n in range(1, 111)]
    np.testing.assert_allclose(found[:10], 0.2 * np.arange(1, 11), rtol=1e-6)
    np.testing.assert_allclose(found[59], 2.0 * halfway, rtol=1e-6)
    np.testing.assert_allclose(found[109], 2.0 * last, rtol=1e-6, atol=1e-7)
    assert np.argmax(found) == 9 and (np.diff(found[9:]) < 0).all()
    assert float(rate(10_000)) == pytest.approx(2.0 * last, abs=1e-7)


def test_a_schedule_may_stay_at_its_peak():
    rate = schedule(recipe("warmup_linear", peak=2.0, warmup=4, hold=10), 18)
    np.testing.assert_allclose([float(rate(n)) for n in (2, 4, 9, 14, 16, 18)], [1, 2, 2, 2, 1, 0], atol=1e-6)


def test_a_schedule_may_end_before_the_run_and_begin_at_its_peak():
    rate = schedule(recipe("warmup_cosine", peak=1.0, steps=20, end=0.5), 100)
    assert float(rate(0)) == 1.0
    assert [float(rate(n)) for n in (20, 50, 100)] == [0.5, 0.5, 0.5]
    assert float(schedule(3e-4, 10)(7)) == float(schedule(recipe("constant", value=3e-4), 10)(7)) == np.float32(3e-4)


def test_adamw(stored):
    values = small(stored)
    trained = dict.fromkeys(values, True)
    linear = recipe("warmup_linear", peak=0.1, warmup=2)
    chosen = recipe("adamw", learning_rate=linear, b1=0.8, b2=0.9, weight_decay=0.3, clip=0.5)
    found = steps_of(optimizer(chosen, stored, trained, 10), values)

    p = {n: np.asarray(v, np.float64) for n, v in values.items()}
    m, v = ({n: np.zeros_like(x) for n, x in p.items()} for _ in range(2))
    for t in (1, 2, 3):
        g = {n: np.sin(x) for n, x in p.items()}
        norm = np.sqrt(sum((x**2).sum() for x in g.values()))
        rate = 0.05 * t if t < 2 else 0.1 * (1 - (t - 2) / 8)
        for n in p:
            clipped = g[n] * min(1, 0.5 / norm)
            m[n] = 0.8 * m[n] + 0.2 * clipped
            v[n] = 0.9 * v[n] + 0.1 * clipped**2
            change = m[n] / (1 - 0.8**t) / (np.sqrt(v[n] / (1 - 0.9**t)) + 1e-8)
            if stored[n].type.rank - stored[n].stacked >= 2:
                change = change + 0.3 * p[n]
            p[n] = p[n] - rate * change
    for n in p:
        np.testing.assert_allclose(found[n], p[n], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("momentum, nesterov, decay", [(0.0, False, 0.0), (0.9, False, 0.0), (0.9, True, 0.2)])
def test_sgd(stored, momentum, nesterov, decay):
    """The penalty is a part of the loss, so it goes through the momentum."""
    values = small(stored)
    arguments = {"learning_rate": 0.1, "momentum": momentum, "nesterov": nesterov, "weight_decay": decay}
    made = optimizer(recipe("sgd", **arguments), stored, dict.fromkeys(values, True), 3)
    found = steps_of(made, values)
    for n, p in values.items():
        p = np.asarray(p, np.float64)
        trace = np.zeros_like(p)
        for _ in range(3):
            g = np.sin(p) + (decay * p if stored[n].type.rank - stored[n].stacked >= 2 else 0)
            trace = momentum * trace + g
            p = p - 0.1 * (g + momentum * trace if nesterov else trace)
        np.testing.assert_allclose(found[n], p, rtol=1e-5, atol=1e-6)


def test_decay_is_on_matrices_only(stored):
    values = {n: jnp.ones(s.type.shape({})) for n, s in stored.items()}
    made = optimizer(recipe("adamw", learning_rate=1.0, weight_decay=0.5), stored, dict.fromkeys(values, True), 1)
    changes, _ = made.update({n: jnp.zeros_like(v) for n, v in values.items()}, made.init(values), values)
    for n, c in changes.items():
        want = 0.0 if "norm" in n else -0.5
        assert np.unique(c).tolist() == [want], n


def test_a_selector_may_mean_some_layers_of_a_stack(stored):
    name = next(n for n in stored if "query" in n and stored[n].stacked)
    s = stored[name]
    assert len(s.logical) > 1
    found = mask((s.logical[1].partition(".attend")[0],), s)
    assert isinstance(found, np.ndarray) and found.shape == (len(s.logical), *(1 for _ in s.type.shape({})[1:]))
    assert found.reshape(-1).tolist() == [i == 1 for i in range(len(s.logical))]
    assert mask(("lm",), s) is True and mask((), s) is True
    assert mask(("table",), s) is False and mask(("kind:vector",), s) is False

    values = {name: jnp.ones(s.type.shape({}))}
    made = optimizer(recipe("adamw", learning_rate=1.0, weight_decay=0.5), stored, {name: found}, 1)
    changes, _ = made.update({name: jnp.zeros_like(values[name])}, made.init(values), values)
    per_layer = np.asarray(changes[name]).reshape(len(s.logical), -1)
    assert [np.unique(x).tolist() for x in per_layer] == [[-0.5 * (i == 1)] for i in range(len(s.logical))]


def test_both():
    some = np.array([True, False])
    assert both(True, True) is True and both(True, False) is False and both(False, some) is False
    assert both(some, True) is some and both(True, some) is some and both(some, False) is False
    assert both(some, np.array([True, True])).tolist() == [True, False]


def test_the_state_is_named_by_stage(stored):
    values = small(stored)
    made = optimizer(recipe("adamw", learning_rate=1.0, clip=1.0), stored, dict.fromkeys(values, True), 1)
    state = jax.eval_shape(made.init, values)
    assert list(state) == ["clip", "adam", "decay", "rate"]
