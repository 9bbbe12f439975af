"""Graphs of other specs in a training program: what is theirs stays theirs."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.backends.xla_graphs import jit

from planform.backends.reference import run
from planform.backends.xla import Policy, lower
from planform.compiler.analyses.sharding import normalise, spec_for, within
from planform.compiler.check import check
from planform.compiler.elaborate import elaborate
from planform.compiler.ir import Input, verify
from planform.compiler.parameters import initial
from planform.compiler.program import program
from planform.compiler.text import from_text, to_text
from planform.compiler.types import TensorType
from planform.spec import Spec, SpecError, load

TEACHER = """planform: 1
model: teacher
dims: {vocab: 11, d: 6, layers: 3}
params:
  table: {shape: [vocab, d]}
blocks:
  layer: id + (rms_norm >> linear(d) >> dropout(0.5))
graphs:
  lm:
    inputs:
      tokens: int[batch, time]
    body: logits = tokens >> embed(table) >> layer ^ layers >> unembed(table)
sharding: {d: fsdp, batch: data}
"""
STUDENT = """planform: 1
model: student
dims: {vocab: 11, d: 4, layers: 2}
params:
  table: {shape: [vocab, d]}
blocks:
  layer: id + (rms_norm >> linear(d))
graphs:
  lm:
    inputs:
      tokens: int[batch, time]
    body: logits = tokens >> embed(table) >> layer ^ layers >> unembed(table)
uses: {teacher: teacher.yaml}
sharding: {vocab: fsdp, batch: [data, fsdp]}
train:
  data: text(tokens)
  loss: cross_entropy(lm(tokens).logits, softmax(teacher(tokens).logits))
  optimizer: adamw(1e-3)
"""


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    (tmp_path / "teacher.yaml").write_text(TEACHER)
    (tmp_path / "student.yaml").write_text(STUDENT)
    return load(tmp_path / "student.yaml")


def changed(spec: Spec, *overrides: str) -> Spec:
    return load(spec.source.name, overrides=overrides)


def test_its_parameters_are_frozen_under_its_name(spec: Spec) -> None:
    assert not [d for d in check(spec) if d.severity == "error"]
    loss = program(spec).updates[0].loss
    verify(loss)
    assert to_text(from_text(to_text(loss))) == to_text(loss)
    frozen = {p.path: p.type for p in loss.parameters if p.frozen}
    own = {p.path: p.type for p in elaborate(spec.uses["teacher"].spec).parameters}
    assert frozen == {f"teacher.{path}": t for path, t in own.items()}
    assert {p.path for p in loss.parameters if not p.frozen} == {p.path for p in elaborate(spec).parameters}


def test_it_is_at_rest(spec: Spec) -> None:
    """A teacher says what it says to anyone: no dropout, though the student is being trained."""
    loss = program(spec).updates[0].loss
    assert not [v for v in loss.of_kind(Input) if v.default in ("uniform", "normal")]
    own = program(changed(spec, "blocks.layer=id + (rms_norm >> dropout(0.5))")).updates[0].loss
    assert {v.path.partition(".")[0] for v in own.of_kind(Input) if v.default == "uniform"} == {"lm"}


def test_it_computes_what_it_computes_alone(spec: Spec) -> None:
    teacher = spec.uses["teacher"].spec
    weights = initial(elaborate(teacher).parameters, seed=3)
    tokens = np.random.default_rng(0).integers(0, 11, (2, 5))
    want = run(elaborate(teacher, "lm"), weights, {"tokens": tokens})["logits"].mean()
    loss = program(changed(spec, "train.loss=mean(teacher.lm(tokens).logits) + 0 * mean(lm(tokens).logits)"))
    graph = loss.updates[0].heldout
    given = initial(graph.parameters) | {f"teacher.{n}": a for n, a in weights.items()}
    assert run(graph, given, {"tokens": tokens})["loss"] == pytest.approx(want, rel=1e-12)


FEATURES = """planform: 1
model: features
dims: {d: 4, f: 3}
graphs:
  features:
    inputs:
      x: float[batch, d]
    body: y = x >> linear(f) >> tanh
"""


NET = """planform: 1
model: net
dims: {n: 5, d: 4}
graphs:
  net:
    inputs:
      z: float[batch, n]
    body: y = z >> linear(d)
uses: {features: features.yaml}
train:
  data: arrays(z, x)
  optimizer: sgd(0.1)
  loss: mean(square(features(net(z)) - features(x).y))
"""


@pytest.fixture
def net(tmp_path: Path) -> Spec:
    (tmp_path / "features.yaml").write_text(FEATURES)
    (tmp_path / "net.yaml").write_text(NET)
    return load(tmp_path / "net.yaml")


def test_gradients_flow_through_it_to_what_it_is_given(net: Spec) -> None:
    """A loss in the features of a frozen network trains the model that made its input."""
    loss = program(net).updates[0].loss
    weights = {n: a + 0.1 for n, a in initial(loss.parameters).items()}
    rng = np.random.default_rng(0)
    inputs = {"z": rng.normal(size=(3, 5)), "x": rng.normal(size=(3, 4))}
    w, f = weights["net.linear.weight"], weights["features.features.linear.weight"]

    def by_hand(w: np.ndarray) -> float:
        return float(np.mean((np.tanh(inputs["z"] @ w @ f) - np.tanh(inputs["x"] @ f)) ** 2))

    step = 1e-4 * rng.normal(size=w.shape)
    slope = (by_hand(w + step) - by_hand(w - step)) / 2
    with jax.enable_x64(True):
        run_loss = lower(loss, Policy(compute="f64"))
        own = {"net.linear.weight": jnp.asarray(w, jnp.float64)}
        frozen = {"features.features.linear.weight": jnp.asarray(f, jnp.float64)}
        grads = jit(jax.grad(lambda own: run_loss({**own, **frozen}, inputs)["loss"]))(own)
        assert float(np.sum(np.asarray(grads["net.linear.weight"]) * step)) == pytest.approx(slope, rel=1e-6)


def test_fields_may_be_inputs_of_the_used_spec_alone(net: Spec) -> None:
    assert {v.name for v in program(net).updates[0].loss.of_kind(Input)} == {"x", "z"}


def test_what_it_is_given_must_have_its_sizes(net: Spec) -> None:
    with pytest.raises(SpecError, match=r"input `x` of graph `features` is f32\[batch, d=4\]"):
        program(changed(net, "train.loss=mean(features(z) - net(z))"))


def test_its_own_rules_place_its_tensors(spec: Spec) -> None:
    from planform.runtime.mesh import rules_of

    rules = normalise(rules_of(spec))
    table = TensorType.parse("f32[vocab=11, d=6]")
    axes = ("data", "fsdp")
    assert spec_for(table, within(rules, "table"), axes) == (("fsdp",), None)
    assert spec_for(table, within(rules, "teacher.table"), axes) == (None, ("fsdp",))
    assert spec_for(table, within(rules, "teachers.table"), axes) == (("fsdp",), None)
    batch = TensorType.parse("i32[batch, time]")
    assert spec_for(batch, within(rules, "tokens"), axes)[0] == ("data", "fsdp")
    assert spec_for(batch, within(rules, "teacher.lm"), axes)[0] == ("data",)


def test_what_its_devices_do_not_divide_is_found(spec: Spec) -> None:
    def findings(mesh: dict[str, int]) -> list[str]:
        return [d.message for d in check(changed(spec, "vocab=12", "uses.teacher=wide.yaml"), mesh)
                if d.severity == "error"]  # fmt: skip

    Path(spec.source.name).with_name("wide.yaml").write_text(TEACHER.replace("vocab: 11", "vocab: 12"))
    assert findings({"data": 1, "fsdp": 2}) == []
    (found,) = findings({"data": 1, "fsdp": 4})
    assert found.startswith("`d` of size 6 can't be split over 4 devices")


def test_what_is_measured_can_be_another_loss(spec: Spec) -> None:
    measured = changed(spec, "train.evaluate.loss=cross_entropy(lm(tokens).logits, next(tokens))")
    (update,) = program(measured).updates
    assert any(p.frozen for p in update.loss.parameters)
    assert not any(p.frozen for p in update.heldout.parameters)
    assert "next" in {n.op.name for n in update.heldout.nodes}


def test_distributions_as_targets_average_as_the_language_page_says(tmp_path: Path) -> None:
    """`mean(cross_entropy(logits, stop(target)))`: a mean over entries, and the mean of a scalar is that scalar."""
    (tmp_path / "critic.yaml").write_text(
        FEATURES.replace("model: features", "model: critic").replace("features:", "critic:")
        + "train:\n  data: arrays(x)\n  optimizer: sgd(0.1)\n  loss: |\n"
        "    target = softmax(critic(0.5 * x).y)\n    mean(cross_entropy(critic(x).y, stop(target)))\n"
    )
    graph = program(load(tmp_path / "critic.yaml")).updates[0].loss
    weights, x = initial(graph.parameters), np.random.default_rng(0).normal(size=(5, 4))
    y, half = (np.tanh(a @ weights["critic.linear.weight"].astype(float)) for a in (x, 0.5 * x))
    p = np.exp(half) / np.exp(half).sum(-1, keepdims=True)
    want = -(p * (y - np.log(np.exp(y).sum(-1, keepdims=True)))).sum(-1).mean()
    assert run(graph, weights, {"x": x})["loss"] == pytest.approx(want, rel=1e-6)
    assert float(jit(lower(graph, Policy()))(weights, {"x": x})["loss"]) == pytest.approx(want, rel=1e-5)
