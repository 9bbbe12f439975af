"""The loss of one head against the distribution of another's, on XLA: values, gradients, memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from planform.backends.xla import Policy, lower
from planform.backends.xla.rules.loss import pieces
from planform.backends.xla.rules.soft_loss import Form, soft_head
from planform.compiler.ir import Builder, Parameter
from planform.compiler.ops.loss import LinearSoftCrossEntropy
from planform.compiler.types import TensorType

from .xla_graphs import jit, relative


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(list(shape)).standard_normal(shape))


def plain(form: Form, x: Any, table: Any, y: Any, other: Any) -> jax.Array:
    def logits(x: Any, table: Any, cap: float | None, scale: float) -> Any:
        z = jnp.einsum("btd,vd->btv", x, table)
        return scale * (cap * jnp.tanh(z / cap) if cap else z)

    p = jax.nn.softmax(logits(y, other, form.other_cap, form.other_scale), -1)
    return -jnp.mean(jnp.sum(p * jax.nn.log_softmax(logits(x, table, form.cap, form.scale), -1), -1))


FORMS = [Form(), Form(1.5, 0.5, None, 2.0, 2), Form(None, 1.0, 2.0, 0.5, 3), Form(1.0, 3.0, 100.0, 1.0, 6)]


@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_in_any_number_of_chunks(form: Form) -> None:
    with jax.enable_x64(True):
        arrays = normal(2, 6, 4), normal(9, 4), normal(2, 6, 3), normal(9, 3)
        # All inputs, those of a student alone, those of a teacher alone: what nobody asks for is not computed.
        for which in ((0, 1, 2, 3), (0, 1), (2, 3), (1,), (2,)):
            want = jax.value_and_grad(lambda *a: 3 * plain(form, *a), which)(*arrays)
            got = jit(jax.value_and_grad(lambda *a: 3 * soft_head(form, *a), which))(*arrays)
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
                assert relative(a, b) < 1e-12
        assert relative(jit(lambda *a: soft_head(form, *a))(*arrays), plain(form, *arrays)) < 1e-12


def test_extreme_logits_stay_finite() -> None:
    arrays = [(300 * a).astype(jnp.float32) for a in (normal(1, 4, 3), normal(5, 3), normal(1, 4, 2), normal(5, 2))]
    value, grads = jit(jax.value_and_grad(lambda *a: soft_head(Form(chunks=2), *a), (0, 1, 2, 3)))(*arrays)
    assert all(bool(jnp.isfinite(a).all()) for a in (value, *grads))


def test_a_model_is_its_own_best_student() -> None:
    """The loss of a model against its own distribution is that distribution's entropy, and no gradient is left."""
    x, table = normal(1, 6, 4), normal(9, 4)
    slope = jit(jax.grad(lambda x, t: soft_head(Form(30.0, 0.5, 30.0, 0.5), x, t, 1 * x, 1 * t)))
    with jax.enable_x64(True):
        frozen = [jnp.asarray(a, jnp.float64) for a in (x, table)]
        grads = jit(jax.grad(lambda x, t: soft_head(Form(30.0, 0.5, 30.0, 0.5), x, t, *frozen), (0, 1)))(*frozen)
        assert max(float(jnp.abs(g).max()) for g in grads) < 1e-15
    assert float(jnp.abs(slope(x, table)).max()) > 1e-3  # where the target moves too there is one


def step(loss_bytes: int) -> Any:
    """A compiled gradient step of the op, for 512 rows of 4096 classes."""
    types = [TensorType.parse(t) for t in (
        "f32[batch=4, time=128, d=8]", "f32[vocab=4096, d=8]", "f32[batch=4, time=128, e=8]", "f32[vocab=4096, e=8]",
    )]  # fmt: skip
    b = Builder("g")
    values = [b.add(Parameter(n, t, path=n)) for n, t in zip("xtyo", types)]
    graph = b.finish({"loss": b.emit(LinearSoftCrossEntropy(30.0, 0.5, 30.0, 0.5), *values)})
    f = lower(graph, Policy(loss_bytes=loss_bytes))

    def loss(student: dict[str, Any], teacher: dict[str, Any]) -> Any:
        return f({**student, **teacher}, {})["loss"]

    arrays = {n: jnp.zeros(t.shape({})) for n, t in zip("xtyo", types)}
    student, teacher = ({n: arrays[n] for n in names} for names in ("xt", "yo"))
    return jax.jit(jax.grad(loss)).lower(student, teacher).compile()


def test_no_logits_are_kept() -> None:
    # Either model's logits are 8 MiB: with chunks of 1 MiB a step must get by with less than one of the two.
    assert step(1 << 20).memory_analysis().temp_size_in_bytes < 5 << 20
    assert step(1 << 30).memory_analysis().temp_size_in_bytes > 16 << 20


def test_chunks_are_counted_for_a_device() -> None:
    """128 x 4096 classes in float32 are 2 MiB; devices that share rows or classes have less each."""
    types = [TensorType.parse(t) for t in ("f32[batch=2, time=64, d=8]", "f32[vocab=4096, d=8]")]
    x, table = (jnp.zeros(t.shape({})) for t in types)

    def chunks(loss_bytes: int | None, platform: str = "cpu", models: int = 1, **shared: int) -> int:
        call: Any = SimpleNamespace(
            inputs=types,
            policy=Policy(platform, loss_bytes=loss_bytes),
            devices=lambda t, axis: shared.get(t.dims[axis].name, 1),
        )
        return pieces(call, x, table, models)

    assert chunks(1 << 18) == 8
    assert chunks(1 << 18, models=2) == 16
    assert chunks(1 << 18, batch=2) == chunks(1 << 18, vocab=2) == 4
    assert chunks(1 << 18, batch=2, time=2, vocab=2) == 1
    assert chunks(None) == chunks(None, "tpu") == 1
    assert Policy("tpu").chunk > Policy().chunk
