"""Every way to run a linear recurrence is the same function, and so are its gradient and that one's gradient."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from planform.backends.xla import Policy, lower
from planform.backends.xla.scans import FORGET, Kernel, Plain, Scan, decayed, kernel
from planform.backends.xla.scans.forms import FORMS, recur
from planform.backends.xla.scans.plain import bounded_sqrt
from planform.compiler.ops.recurrence import GRADIENT_BOUND, LinearRecurrence
from planform.compiler.types import Dim, TensorType

from .test_xla_ops import graph_of, reference
from .xla_graphs import jit, relative


def slopes(f: Any, *args: jax.Array, twice: bool = True) -> list[jax.Array]:
    """f's results, the gradient of a weighted sum of them, and the gradient of that one's length."""
    rng = np.random.default_rng(3)
    weights = [jnp.asarray(rng.standard_normal(y.shape)) for y in jax.eval_shape(f, *args)]
    every = tuple(range(len(args)))

    def total(*args: jax.Array) -> jax.Array:
        return sum(jnp.sum(w * y) for w, y in zip(weights, f(*args)))

    def length(*args: jax.Array) -> jax.Array:
        return sum(jnp.sum(g * g) for g in jax.grad(total, every)(*args))

    found = [*jit(f)(*args), *jit(jax.grad(total, every))(*args)]
    return [*found, *jit(jax.grad(length, every))(*args)] if twice else found


def loop(reverse: bool, a: jax.Array, b: jax.Array, carry: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The definition, entry by entry."""
    found = [carry] * a.shape[1]
    for t in range(a.shape[1])[:: -1 if reverse else 1]:
        found[t] = b[:, t] + carry if reverse else a[:, t] * carry + b[:, t]
        carry = a[:, t] * found[t] if reverse else found[t]
    return jnp.stack(found, 1), carry


@pytest.mark.parametrize("time", [1, 4])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_forms_are_the_loop(form: str, reverse: bool, time: int) -> None:
    rng = np.random.default_rng(time)
    a, b = rng.uniform(0, 1, (2, time, 3)), rng.standard_normal((2, time, 3))
    a[0, time // 2] = 0  # a document begins
    with jax.enable_x64(True):
        args = [jnp.asarray(x) for x in (a, b, rng.standard_normal((2, 3)))]
        found = slopes(lambda *args: recur(form, reverse, *args), *args)
        for got, want in zip(found, slopes(lambda *args: loop(reverse, *args), *args), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)


def written(normalise: bool) -> Any:
    """The recurrence as it is written down, without a gradient of its own."""

    def f(x: jax.Array, log_a: jax.Array, before: jax.Array) -> tuple[jax.Array, jax.Array]:
        return loop(False, jnp.exp(log_a), x * jnp.sqrt(-jnp.expm1(2 * log_a)) if normalise else x, before)

    return f


def example(*shape: int) -> list[jax.Array]:
    rng = np.random.default_rng(shape)
    log_a = -np.exp(rng.uniform(-5, 1.5, shape))  # a from 0.01 to 0.993
    log_a[0, shape[1] // 2] = FORGET
    return [jnp.asarray(v) for v in (rng.standard_normal(shape), log_a, rng.standard_normal((shape[0], *shape[2:])))]


RUNS = {"sequential": lambda n: Plain("sequential", n), "kernel": lambda n: Kernel(n, interpret=True)}


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("run", RUNS)
def test_runs_are_what_is_written(run: str, normalise: bool) -> None:
    with jax.enable_x64(True):
        args = example(2, 4, 2, 3)
        twice = run != "kernel" or normalise
        found = slopes(lambda *args: decayed(Scan(RUNS[run](normalise)), *args), *args, twice=twice)
        for got, want in zip(found, slopes(written(normalise), *args, twice=twice), strict=True):
            assert relative(got, want) < (1e-6 if run == "kernel" else 1e-11)  # a series in float32's precision


@pytest.mark.parametrize("time", [64, 70])  # two blocks exactly; several, the last not full
def test_the_kernel_goes_on_from_block_to_block(monkeypatch: pytest.MonkeyPatch, time: int) -> None:
    monkeypatch.setattr(kernel, "TIME", 32)
    monkeypatch.setattr(kernel, "WIDTH", 128)
    with jax.enable_x64(True):
        args = example(1, time, 150)
        found, want = [], []
        for run, into in ((Kernel(True, interpret=True), found), (Plain("sequential", True), want)):
            into += slopes(lambda *args, run=run: decayed(Scan(run), *args), *args, twice=False)
            into += [jit(run.handed_on)(*args[:2]), jit(run.handed_back)(args[1], args[0])]
        for got, exact in zip(found, want, strict=True):
            assert relative(got, exact) < 1e-6


@pytest.mark.parametrize("form", ["sequential", "associative", "kernel"])
def test_every_form_of_the_op_over_documents(form: Any) -> None:
    rng = np.random.default_rng(0)
    x = TensorType("f32", (Dim("batch", 2), Dim("time", 41), Dim("d", 5)))
    types = [x, x, TensorType("i32", x.dims[:2])]
    position = np.stack([np.arange(41), np.r_[np.arange(3, 20), np.arange(1), np.arange(23)]]).astype(np.int32)
    arrays = [rng.standard_normal((2, 41, 5)), -np.exp(rng.uniform(-5, 1.5, (2, 41, 5))), position]
    (want,) = reference(LinearRecurrence(True), types, arrays)
    for compute, tolerance in (("f32", 1e-6), ("bf16", 2e-2)):
        policy = Policy(compute=compute, recurrence=form)  # type: ignore[arg-type]
        given = {f"x{i}": jnp.asarray(v, None if i == 2 else jnp.float32) for i, v in enumerate(arrays)}
        got = jit(lower(graph_of(LinearRecurrence(True), types), policy))({}, given)["y0"]
        assert relative(got, want) < tolerance


@pytest.mark.parametrize("run", RUNS)
def test_where_nothing_is_forgotten_slopes_are_bounded(run: str) -> None:
    x, log_a = jnp.ones((1, 3, 2)), jnp.array([-1e-9, -1e-12, 0.0]).reshape(1, 3, 1) + jnp.zeros((1, 3, 2))
    scan = Scan(RUNS[run](True))
    slope = jax.grad(lambda log_a: decayed(scan, x, log_a, jnp.zeros((1, 2)))[0][:, -1].sum())(log_a)
    np.testing.assert_allclose(slope, -2 * GRADIENT_BOUND, rtol=1e-3)
    found = jax.vmap(jax.grad(bounded_sqrt))(jnp.array([0.0, 1e-12, 1e-2, 1.0]))
    np.testing.assert_allclose(found, [GRADIENT_BOUND, GRADIENT_BOUND, 5.0, 0.5], rtol=1e-5)


def test_the_loop_over_time_copies_nothing() -> None:
    def f(x: jax.Array, log_a: jax.Array, before: jax.Array) -> jax.Array:
        return sum(jnp.sum(jnp.sin(y)) for y in decayed(scan, jnp.sin(x), -jnp.exp(log_a), before))

    scan = Scan(Plain("sequential", True))
    args = [jnp.zeros((2, 64, 24))] * 2 + [jnp.zeros((2, 24))]
    text = jax.jit(jax.grad(f, (0, 1, 2))).lower(*args).compile().as_text()
    loops = re.findall(r" while\(.*body=(%[\w.]+)", text)
    assert len(loops) == 2, "one for the recurrence, one for its gradient"
    for name in loops:
        body = text[text.index(f"\n{name} (") :].split("\n}")[0]
        assert "dynamic-update-slice" in body
        assert not re.search(r"= f32\[2,64,24\]\S* copy\(", body), body


def test_on_tpu_it_is_the_kernel() -> None:
    x = TensorType("f32", (Dim("batch", 2), Dim("time", 300), Dim("d", 640)))
    f = lower(
        graph_of(LinearRecurrence(True), [x, x, TensorType("i32", x.dims[:2])]), Policy(platform="tpu", compute="bf16")
    )
    arrays = {f"x{i}": jax.ShapeDtypeStruct((2, 300, 640), jnp.bfloat16) for i in (0, 1)}
    arrays["x2"] = jax.ShapeDtypeStruct((2, 300), jnp.int32)
    step = jax.jit(jax.grad(lambda given: f({}, given)["y0"].astype(jnp.float32).sum(), allow_int=True))
    assert step.trace(arrays).lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call") == 2


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="recurrence is sequential, associative or kernel, not 'fast'"):
        Policy(recurrence="fast")  # type: ignore[arg-type]
