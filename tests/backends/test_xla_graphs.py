"""Whole graphs on XLA: groupings, defaults, precision, recomputation, against the reference."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from planform.backends import reference
from planform.backends.xla import Policy, from_logical, initialise, lower, storage, to_logical
from planform.backends.xla.grouping import Grouped, group, join, split
from planform.compiler.ir import Builder, Graph, Input, Node, Value
from planform.compiler.ops.attention import Attend, AttendLocal
from planform.compiler.passes.local_attention import LocalAttention
from planform.compiler.passes.loss_head import LossHead
from planform.compiler.types import Dim, TensorType

from ..compiler.graphs import decoder, decoder_loss, parameters
from .xla_graphs import jit, logits, loss, relative, tokens, values


def run(graph: Graph, policy: Policy, get: dict[str, np.ndarray], **inputs: Any) -> dict[str, jax.Array]:
    stored = from_logical(get.__getitem__, graph, policy)
    return jit(lower(graph, policy))(stored, inputs)


def gradients(graph: Graph, policy: Policy, get: dict[str, np.ndarray], **inputs: Any) -> dict[str, np.ndarray]:
    f = lower(graph, policy)
    stored = from_logical(get.__getitem__, graph, policy)
    return to_logical(jit(jax.grad(lambda p: f(p, inputs)["loss"]))(stored))


@pytest.mark.parametrize("unroll", [1, 2, 4, None])
def test_every_grouping_is_the_reference(unroll: int | None) -> None:
    graph = decoder(5)  # 1 and 2 leave scans, 2 and 4 a remainder, None neither
    get, toks = parameters(graph), tokens(vocab=11)
    want = reference.run(graph, get, {"tokens": toks})["logits"]
    with jax.enable_x64(True):
        assert relative(run(graph, Policy(compute="f64", unroll=unroll), get, tokens=toks)["logits"], want) < 1e-12
    assert relative(run(graph, Policy(unroll=unroll), get, tokens=toks)["logits"], want) < 2e-5


def test_gradients_are_the_same_for_every_grouping_and_what_they_should_be() -> None:
    graph = LossHead()(decoder_loss(5))
    get, toks = parameters(graph), tokens(vocab=11)
    with jax.enable_x64(True):
        found = [gradients(graph, Policy(compute="f64", unroll=u), get, tokens=toks) for u in (1, 2)]
        for name, g in found[0].items():
            for other in found[1:]:
                assert relative(other[name], g) < 1e-9, name
    # along a random direction, against the reference's own slope
    rng, step = np.random.default_rng(0), 1e-6
    direction = {k: rng.standard_normal(v.shape) for k, v in get.items()}
    ends = [
        reference.run(graph, {k: v + s * step * direction[k] for k, v in get.items()}, {"tokens": toks})["loss"]
        for s in (1, -1)
    ]
    slope = sum(np.sum(direction[k] * found[0][k]) for k in get)
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("unroll", [1, 2])
def test_repetitions_within_repetitions(unroll: int) -> None:
    graph = decoder_loss(3, nested=True)  # three groups of two layers
    get = parameters(graph)
    want = reference.run(graph, get, {"tokens": tokens(vocab=11)})["loss"]
    policy = Policy(unroll=unroll)
    assert relative(run(graph, policy, get, tokens=tokens(vocab=11))["loss"], want) < 2e-5
    assert set(to_logical(from_logical(get.__getitem__, graph, policy))) == set(get)


def test_documents_and_positions_that_are_given() -> None:
    graph = loss(layers=2)
    get = values(graph)
    position = np.array([[0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 1, 2, 3], np.arange(13)], np.int32)
    document = np.array([[0] * 6 + [1] * 3 + [2] * 4, [0] * 13], np.int32)
    given = {"tokens": tokens(), "position": position, "document": document}
    want = reference.run(graph, get, given)["loss"]
    assert relative(run(graph, Policy(), get, **given)["loss"], want) < 2e-5
    assert relative(run(graph, Policy(), get, tokens=tokens())["loss"], want) > 1e-4
    local = LocalAttention(block=3)(graph)
    assert any(n.op.name == "attend_local" for n in local.walk())
    assert relative(run(local, Policy(), get, **given)["loss"], want) < 2e-5


@pytest.mark.parametrize(("time", "block"), [(3, 4), (12, 4), (13, 4), (13, 2), (7, 1)])
def test_attention_in_blocks_is_attention(time: int, block: int) -> None:
    b = Builder("attend", stream="time")
    lead = (Dim("batch", 2), Dim("time", time))
    q, k, v = (
        b.add(Input(n, TensorType("f32", (*lead, Dim(heads, size), Dim("head_dim", 4)))))
        for n, heads, size in (("q", "heads", 4), ("k", "kv_heads", 2), ("v", "kv_heads", 2))
    )
    where = [
        b.add(Input(n, TensorType("i32", lead), default=d)) for n, d in (("position", "iota"), ("document", "zeros"))
    ]
    whole = Attend(0.5, True, 4, 5.0)
    for name, op in (("whole", whole), ("local", AttendLocal(0.5, True, 4, 5.0, block))):
        b.nodes.append(Node(op, (q, k, v, *where), (Value(name, q.type),)))
    graph = b.finish({n.outputs[0].name: n.output for n in b.nodes})
    rng = np.random.default_rng(0)
    arrays = {x.name: rng.standard_normal(x.type.shape({})) for x in (q, k, v)}
    weights = rng.standard_normal(q.type.shape({}))
    with jax.enable_x64(True):
        f = lower(graph, Policy(compute="f64"))

        def both(arrays: Any) -> Any:
            out = f({}, arrays)
            return [(weights * out[n]).sum() for n in ("whole", "local")], (out["whole"], out["local"])

        slopes, outs = jit(jax.jacrev(both, has_aux=True))(arrays)
    assert np.max(np.abs(outs[0] - outs[1])) < 1e-12
    for name in arrays:
        assert np.max(np.abs(slopes[0][name] - slopes[1][name])) < 1e-12, name


def test_recomputing_changes_nothing() -> None:
    graph = decoder_loss(3)
    get, toks = parameters(graph), tokens(vocab=11)
    kept = gradients(graph, Policy(unroll=1), get, tokens=toks)
    for remat in ("layer", "dots"):
        again = gradients(graph, Policy(unroll=1, remat=remat), get, tokens=toks)  # type: ignore[arg-type]
        for name, g in kept.items():
            assert np.max(np.abs(again[name] - g)) <= 1e-6 + 1e-4 * np.max(np.abs(g)), name


def test_remat_by_layer_needs_less_memory() -> None:
    graph = loss(layers=8, d=16, ff=64)
    sizes = {}
    for remat in ("none", "layer"):
        policy = Policy(remat=remat)  # type: ignore[arg-type]
        f = lower(graph, policy)
        step = jit(jax.grad(lambda p, t, f=f: f(p, {"tokens": t})["loss"]))
        compiled = step.lower(initialise(graph, policy, 0), jnp.asarray(tokens(4, 64))).compile()
        sizes[remat] = compiled.memory_analysis().temp_size_in_bytes
    assert sizes["layer"] < 0.7 * sizes["none"]


def test_bfloat16_is_close_and_its_parameters_and_losses_are_float32() -> None:
    graph = loss(layers=2)
    get = values(graph)
    policy = Policy(compute="bf16")
    stored = from_logical(get.__getitem__, graph, policy)
    assert {a.dtype for a in stored.values()} == {jnp.dtype("float32")}
    f = lower(graph, policy)
    value, grads = jit(jax.value_and_grad(lambda p: f(p, {"tokens": tokens()})["loss"]))(stored)
    want = reference.run(graph, get, {"tokens": tokens()})["loss"]
    assert value.dtype == jnp.float32
    assert relative(value, want) < 2e-2
    assert {g.dtype for g in grads.values()} == {jnp.dtype("float32")}
    text = str(jax.make_jaxpr(lambda p: f(p, {"tokens": tokens()}))(stored))
    assert "bf16[2,13,8]" in text


# -- storage -----------------------------------------------------------------------------------------------


def test_stored_names_say_which_layers_they_hold() -> None:
    graph = logits(layers=10)
    found = {n: s for n, s in storage(graph, Policy(unroll=2)).items() if "query.weight" in n}
    slices = [n.split("layer")[1].split(".")[0] for n in found]
    assert slices == ["[0:8:4]", "[2:10:4]", "[8]", "[1:9:4]", "[3:10:4]", "[9]"]
    shapes = [s.type.shape({}) for s in found.values()]
    assert shapes == [(2, 8, 4, 4), (2, 8, 4, 4), (8, 4, 4)] * 2
    first = next(iter(found.values()))
    assert [name.split(".attend")[0] for name in first.logical] == ["lm.layer[0]", "lm.layer[4]"]
    assert first.type.dims[1:] == (Dim("d", 8), Dim("heads", 4), Dim("head_dim", 4))


def test_first_values_do_not_depend_on_the_grouping() -> None:
    graph = logits(layers=10)
    found = [to_logical(initialise(graph, Policy(unroll=u), seed=3)) for u in (1, 2, None)]
    other = to_logical(initialise(graph, Policy(), seed=4))
    for name, array in found[0].items():
        assert all(np.array_equal(array, f[name]) for f in found[1:])
    assert any(not np.array_equal(found[0][n], other[n]) for n in other)


def test_the_default_policy_holds_the_same_number_of_layers_however_deep_a_model_is() -> None:
    def bodies(layers: int) -> int:
        return sum("query.weight" in n for n in storage(logits(layers=layers), Policy()))

    assert [bodies(n) for n in (2, 8, 12)] == [2, 8, 12]
    assert all(bodies(n) <= 6 + 2 for n in (24, 26, 42, 46, 96, 98))


@pytest.mark.parametrize("count", [1, 2, 5, 6])
@pytest.mark.parametrize("unroll", [1, 2, 3, 6])
def test_grouping_a_stack_and_joining_it_again(count: int, unroll: int) -> None:
    stack = jnp.arange(count * 3).reshape(count, 3)
    grouped = group(stack, count, unroll)
    assert np.array_equal(join(grouped), stack)
    for other in (1, 2, 4):
        again = group(grouped, count, other)
        assert isinstance(again, Grouped)
        assert np.array_equal(join(again), stack)
        assert (again.unrolled, len(again.plain)) == (split(count, other)[0], split(count, other)[2])


# -- what doesn't fit --------------------------------------------------------------------------------------


def test_wrong_arrays_are_refused_by_name() -> None:
    graph = logits(layers=2)
    policy = Policy()
    f, stored = lower(graph, policy), initialise(graph, policy, 0)
    with pytest.raises(ValueError, match="tokens"):
        f(stored, {"tokens": tokens()[0]})
    with pytest.raises(KeyError, match="tokens"):
        f(stored, {})
    with pytest.raises(ValueError, match="time"):
        f(stored, {"tokens": tokens(), "position": tokens(time=5)})
    with pytest.raises(KeyError, match="table"):
        f({k: v for k, v in stored.items() if k != "table"}, {"tokens": tokens()})
    with pytest.raises(ValueError, match="table"):
        from_logical(lambda name: np.zeros((3, 3)), graph, policy)
    with pytest.raises(ValueError, match="x64"):
        lower(graph, Policy(compute="f64"))(stored, {"tokens": tokens()})


def test_wrong_policies_are_refused() -> None:
    for wrong in ({"remat": "some"}, {"compute": "f8"}, {"unroll": 0}):
        with pytest.raises(ValueError):
            Policy(**wrong)  # type: ignore[arg-type]
