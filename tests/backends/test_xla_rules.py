"""The rules with gradients of their own, against what JAX makes of the plain formulas."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from planform.backends.xla import Policy, lower, storage
from planform.backends.xla.rules import attention, linear
from planform.backends.xla.rules.attention import MOST, softmax_product
from planform.backends.xla.rules.batch_norm import normalised
from planform.backends.xla.rules.contract import Default
from planform.backends.xla.rules.field import turned
from planform.backends.xla.rules.gate import ACTIVATIONS, activate, gated
from planform.backends.xla.rules.linear import matmul, outer, transposed
from planform.backends.xla.rules.loss import head
from planform.backends.xla.rules.norm import scaled_by_rms
from planform.backends.xla.rules.sums import Total, by_product, by_sum, total_of
from planform.compiler.elaborate import elaborate
from planform.compiler.types import Dim, TensorType
from planform.spec import load_text

from .xla_graphs import jit, relative


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape))


def agree(ours: Any, plain: Any, *args: jax.Array, tolerance: float = 1e-11) -> None:
    """Values, gradients by all arguments, and gradients of a gradient."""
    weights = normal(*jax.eval_shape(plain, *args).shape, seed=9)
    every = tuple(range(len(args)))

    def slope(f: Any) -> Any:
        return jax.grad(lambda *a: jnp.sum(weights * f(*a)), every)

    def curve(f: Any) -> Any:
        return jax.grad(lambda *a: sum(jnp.sum(g * g) for g in slope(f)(*a)), every)

    for of in (lambda f: lambda *a: (f(*a),), slope, curve):
        for got, want in zip(jit(of(ours))(*args), jit(of(plain))(*args), strict=True):
            assert relative(got, want) < tolerance


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gates_and_activations(name: str) -> None:
    with jax.enable_x64(True):
        x, y = 3 * normal(4, 50), normal(4, 50, seed=1)
        plain = ACTIVATIONS[name][0]
        agree(lambda x: activate(name, x), plain, x)
        agree(lambda x, y: gated(name, x, y), lambda x, y: plain(x) * y, x, y)


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (3, 2, 4)])
def test_products(shape: tuple[int, ...]) -> None:
    with jax.enable_x64(True):
        x, w = normal(5, shape[0]), normal(*shape)
        agree(matmul, lambda x, w: x @ w.reshape(shape[0], -1), x, w)


@pytest.mark.parametrize("copies", [False, True])
def test_products_of_copies(copies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "copying", lambda: copies)
    x, w = normal(5, 130), normal(130, 140)
    text = jax.jit(jax.grad(lambda w: matmul(x, w).sum())).lower(w).as_text()
    assert ("optimization_barrier" in text) is copies
    with jax.enable_x64(True):
        agree(matmul, jnp.matmul, normal(5, 130), normal(130, 140))


TOTALS = pytest.mark.parametrize("total", [by_sum, by_product])


@TOTALS
@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8), (2, 3, 4, 8)])
def test_rms_norm(total: Total, shape: tuple[int, ...]) -> None:
    def plain(x: jax.Array, scale: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-3) * (1 + scale)

    with jax.enable_x64(True):
        agree(lambda x, s: scaled_by_rms(x, s, 1.0, 1e-3, total), plain, normal(*shape), normal(8))


def plain_batch_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    m, v = x.mean(1, keepdims=True), x.var(1, keepdims=True)
    return (x - m) / jnp.sqrt(v + 1e-3) * scale + bias + jnp.sin(m) * v  # the statistics have gradients too


@pytest.mark.parametrize(
    ("platform", "split", "total"),
    [("cpu", ("data", None, None), by_product), ("cpu", (None, "fsdp", None), by_sum), ("gpu", (None,) * 3, by_sum)],
)
def test_rows_that_devices_share_are_summed_as_they_are(platform: str, split: Any, total: Total) -> None:
    call: Any = SimpleNamespace(policy=Policy(platform=platform), split=lambda _: split, inputs=[None])
    assert total_of(call) is total


@TOTALS
@pytest.mark.parametrize("mean", [0.0, 50.0])
def test_batch_norm(mean: float, total: Total) -> None:
    def ours(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        y, m, v = normalised(1e-3, total, x, scale, bias)
        return y + jnp.sin(m) * v

    with jax.enable_x64(True):
        agree(ours, plain_batch_norm, normal(2, 9, 4) + mean, normal(4), normal(4, seed=1), tolerance=1e-9)


@TOTALS
def test_batch_norm_keeps_the_variance_where_the_mean_is_far(total: Total) -> None:
    x = np.float32(3000) + np.random.default_rng(0).standard_normal((1, 4096, 3)).astype(np.float32)
    _, _, v = jit(lambda x: normalised(1e-5, total, x, jnp.ones(3), jnp.zeros(3)))(x)
    assert relative(v[0], x.astype(np.float64).var(1)) < 1e-5


@pytest.mark.parametrize("rows", [(100,), (7, 9), (50, 56, 56)])
def test_sums_by_products(rows: tuple[int, ...]) -> None:
    """Of as many rows as a product in one piece would lose digits over."""
    x = np.random.default_rng(0).uniform(0, 1, (2, *rows, 3)).astype(np.float32)
    found = jit(by_product)(x)
    assert found.shape == (2, *[1] * len(rows), 3)
    assert relative(found.reshape(2, 3), x.astype(np.float64).reshape(2, -1, 3).sum(1)) < 1e-6


# -- attention ---------------------------------------------------------------------------------------------


def plain_attention(q: Any, k: Any, v: Any, ok: Any, cap: float | None) -> jax.Array:
    z = q @ k.swapaxes(-1, -2)
    z = cap * jnp.tanh(z / cap) if cap else z
    ok = jnp.tile(ok, (q.shape[-2] // ok.shape[-2], 1))
    return jax.nn.softmax(jnp.where(ok, z, -1e30), -1) @ v


@pytest.mark.parametrize("cap", [None, 0.5, 5.0, 2 * MOST])
def test_attention(cap: float | None) -> None:
    with jax.enable_x64(True):
        q, k, v = normal(2, 3, 10, 4), normal(2, 3, 7, 4), normal(2, 3, 7, 6)
        ok = jnp.tril(jnp.ones((5, 7), bool), 2)
        agree(
            lambda q, k, v: softmax_product(q, k, v, ok, cap),
            lambda q, k, v: plain_attention(q, k, v, ok, cap),
            q, k, v,
        )  # fmt: skip


@pytest.mark.parametrize("cap", [None, 50.0])
def test_attention_of_large_scores_and_of_rows_that_see_nothing_stays_finite(cap: float | None) -> None:
    q, k, v = 100 * normal(1, 6, 4), 100 * normal(1, 5, 4), normal(1, 5, 3)
    q, k, v = (a.astype(jnp.float32) for a in (q, k, v))
    ok = jnp.ones((3, 5), bool).at[1].set(False)
    f = lambda q, k, v: softmax_product(q, k, v, ok, cap)  # noqa: E731
    out = jit(f)(q, k, v)
    grads = jit(jax.grad(lambda *a: jnp.sum(f(*a)[:, ::3] ** 2), (0, 1, 2)))(q, k, v)
    assert all(bool(jnp.isfinite(a).all()) for a in (out, *grads))
    seen = np.array([0, 2, 3, 5])
    assert relative(out[:, seen], plain_attention(q, k, v, ok, cap)[:, seen]) < 2e-5


# -- the loss head -----------------------------------------------------------------------------------------


def plain_head(x: Any, table: Any, targets: Any, cap: float | None) -> jax.Array:
    z = jnp.einsum("btd,vd->btv", x, table)
    z = cap * jnp.tanh(z / cap) if cap else z
    nats = -jnp.take_along_axis(jax.nn.log_softmax(z, -1), jnp.maximum(targets, 0)[..., None], -1)[..., 0]
    return jnp.sum(jnp.where(targets >= 0, nats, 0)) / jnp.maximum(jnp.sum(targets >= 0), 1)


LOOKS = ("gather", "compare")


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize(("chunks", "cap"), [(1, None), (1, 1.5), (2, 1.5), (3, 2 * MOST), (6, None)])
def test_the_loss_head_in_any_number_of_chunks(chunks: int, cap: float | None, look: str) -> None:
    targets = jnp.asarray(np.random.default_rng(0).integers(-1, 9, (2, 6)))
    with jax.enable_x64(True):
        x, table = normal(2, 6, 4), normal(9, 4)
        want = jax.value_and_grad(lambda x, t: 3 * plain_head(x, t, targets, cap), (0, 1))(x, table)
        got = jit(jax.value_and_grad(lambda x, t: 3 * head(x, t, targets, cap, chunks, look), (0, 1)))(x, table)
        alone = jit(lambda x, t: head(x, t, targets, cap, chunks, look))(x, table)
        assert relative(alone, want[0] / 3) < 1e-12
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert relative(a, b) < 1e-12


@pytest.mark.parametrize("look", LOOKS)
def test_no_target_at_all_is_no_loss_and_no_gradient(look: str) -> None:
    x, table = normal(2, 4, 3).astype(jnp.float32), normal(5, 3).astype(jnp.float32)
    f = jax.value_and_grad(lambda x, t: head(x, t, jnp.full((2, 4), -1), 30.0, 2, look), (0, 1))
    value, grads = jit(f)(x, table)
    assert value == 0
    assert all(not g.any() for g in grads)


@pytest.mark.parametrize("look", LOOKS)
def test_the_loss_head_keeps_no_logits(look: str) -> None:
    # 512 rows of 4096 classes are 8 MiB; in 16 chunks a step must get by with far less.
    x, table = jnp.zeros((4, 128, 8)), jnp.zeros((4096, 8))
    targets = jnp.zeros((4, 128), jnp.int32)
    step = jit(jax.grad(lambda x, t: head(x, t, targets, 30.0, 16, look), (0, 1)))
    assert step.lower(x, table).compile().memory_analysis().temp_size_in_bytes < 4 << 20


def _slope(f: Any) -> Any:
    """The derivative of a function of single numbers, on arrays."""
    return lambda x: jax.grad(lambda x: f(x).sum())(x)


@pytest.mark.parametrize("quarters", range(4))
def test_the_sine_of_a_field(quarters: int) -> None:
    """On CPU in arithmetic of its own: against NumPy for angles of many turns, with two derivatives."""
    x = np.linspace(-300, 300, 20001).astype(np.float32)
    f = lambda x: turned(x, quarters)  # noqa: E731
    for d in range(3):
        want = np.sin(x.astype(np.float64) + (quarters + d) * np.pi / 2)
        assert np.max(np.abs(np.asarray(jit(f)(x)) - want)) < 3e-7
        f = _slope(f)
    for far in (1e4, 1e6):  # within what rounding the angle itself costs
        x = np.float32(far * 1.0001)
        assert abs(float(turned(x, 0)) - np.sin(float(x))) < float(np.spacing(x))


@pytest.mark.parametrize("k, n", [(3, 5), (5, 3)])
def test_the_products_that_gradients_are_made_of(k: int, n: int) -> None:
    with jax.enable_x64(True):
        y, w = normal(7, n), normal(k, n, seed=1)
        agree(transposed, lambda y, w: y @ w.T, y, w)
        agree(outer, lambda x, y: x.T @ y, normal(7, k, seed=2), y)


@pytest.mark.parametrize("most", [attention.CONSTANT, 0])
def test_angles_of_positions_by_default_are_those_of_the_same_positions_given(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Absolute ones, which attention's scores wouldn't tell: those of 0 are no turn at all."""
    monkeypatch.setattr(attention, "CONSTANT", most)
    by_default = Default("iota", TensorType("i32", (Dim("time", 300),)))
    call: Any = SimpleNamespace(policy=Policy(), shared={})
    for found, given in zip(*(attention.angles(call, p, 8, 100.0) for p in (by_default, jnp.arange(300)))):
        assert found.shape == given.shape == (300, 1, 8)
        assert np.abs(found - given).max() < 1e-5


BLOCKS = """
planform: 1
model: attends
graphs:
  attends:
    inputs:
      x: float[batch, time, d]
    body: |
      y = x >> attention(heads, kv, head_dim, scale=0.3, softcap=5.0, {window}causal=true, position=rope(100))
          >> linear(1)
dims: {{d: 16, heads: 4, kv: 2, head_dim: 8}}
"""


@pytest.mark.parametrize("window", ["", "window=200, ", "window=100, "])
@pytest.mark.parametrize("time", [256, 384, 500])
def test_causal_attention_in_blocks_of_queries(time: int, window: str) -> None:
    """What a CPU computes in blocks is what another platform computes at once; 500 has blocks of 250."""
    graph = elaborate(load_text(BLOCKS.format(window=window)), "attends")
    rng = np.random.default_rng(0)
    weights = {n: rng.standard_normal(p.type.shape({})) for n, p in storage(graph, Policy()).items()}
    x = {"x": rng.standard_normal((2, time, 16))}
    found = []
    with jax.enable_x64(True):
        for platform in ("cpu", "gpu"):
            f = lower(graph, Policy(platform=platform, compute="f64"))
            found.append(jit(jax.value_and_grad(lambda w, f=f: jnp.sum(jnp.sin(f(w, x)["y"]))))(weights))
        for a, b in zip(*map(jax.tree.leaves, found), strict=True):
            assert relative(a, b) < 1e-12
