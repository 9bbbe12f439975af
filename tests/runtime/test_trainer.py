"""One process, one device: what a step does, and what a run tells."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.runtime.training import LIGHT, Losses, compiled_once
from tests.runtime.training import trainer as make

from planform.compiler.parameters import scatter
from planform.runtime import updates
from planform.runtime.errors import UserError
from planform.runtime.optimizer import schedule


def trainer(folder, text=LIGHT, **options):
    return make(folder, text=text, overrides=["layers=2"], unroll=1, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("trainer")
    with compiled_once(made / "compiled"):
        yield made


def after(folder, steps=2, **options):
    """(losses, logical parameters) after some steps."""
    seen = Losses()
    with trainer(folder, observer=seen, **options) as t:
        t.run(steps)
        return seen.values, scatter({n: np.asarray(a) for n, a in t.state.parameters.items()})


def difference(a, b):
    return max(np.abs(a[n] - b[n]).max() for n in b)


def test_accumulated_steps_are_the_same_steps(folder, double, monkeypatch):
    losses, whole = after(folder, compute="f64")
    other_losses, other = after(folder, compute="f64", accumulate=4)
    assert difference(other, whole) < 1e-14
    np.testing.assert_allclose(other_losses, losses, rtol=1e-14)
    # It would not be so if parts with few targets counted as much as others.
    monkeypatch.setattr(updates.OneUpdate, "_weight", lambda self, out: jnp.ones(()))
    unweighted, _ = after(folder, compute="f64", accumulate=4)
    assert abs(unweighted[0] / losses[0] - 1) > 1e-8


def test_metrics_of_a_step(folder):
    seen = []

    class Observer(Losses):
        def step(self, step, tokens, values):
            seen.append((step, tokens, values))

    with trainer(folder, observer=Observer(), evaluate_every=2) as t:
        before = {n: np.array(a) for n, a in t.state.parameters.items()}
        result = t.run(3)
        assert result.step == t.state.step == 3 and result.exit_code == 0
        changed = {n for n, a in t.state.parameters.items() if (np.array(a) != before[n]).any()}
        assert changed == set(before)
    assert [(s, n) for s, n, _ in seen] == [(1, 128), (2, 128), (3, 128)]
    rate = schedule(t.program.updates[0].optimizer.arguments["learning_rate"], t.program.steps)
    for step, _, values in seen:
        assert values["learning_rate"] == pytest.approx(float(rate(step)), rel=1e-6)
        assert 0 < values["gradient_norm"] < 100 and 4 < values["loss"] < 6
    assert {"heldout_loss", "bits_per_byte", "tokens_per_second"} <= set(result.values)


def test_heldout_loss_is_the_mean_over_targets(folder, double):
    with trainer(folder, compute="f64", evaluate_batches=3) as t:
        found = t.measure()["heldout_loss"]
        (update,) = t.updates.each
        pairs = []
        for batch in t.data.heldout(3):
            for row in range(8):  # one example at a time
                one = {n: jnp.asarray(batch[n][row : row + 1]) for n in update.inputs}
                out = update._run_heldout(t.state.parameters, one, None)
                pairs.append([float(out["loss"]), float(out["weight"])])
    total, weight = sum(v * w for v, w in pairs), sum(w for _, w in pairs)
    assert found == pytest.approx(total / weight, rel=1e-12)
    assert len({w for _, w in pairs}) > 1  # so that a mean of means would differ
    assert weight == sum(w for _, w in pairs) and found != pytest.approx(np.mean([v for v, _ in pairs]), rel=1e-8)


def test_bfloat16_keeps_float32_parameters(folder):
    losses, parameters = after(folder, steps=3, compute="bf16")
    exact, _ = after(folder, steps=3)
    assert {p.dtype for p in parameters.values()} == {np.dtype("float32")}
    np.testing.assert_allclose(losses, exact, rtol=2e-2)
    assert losses != exact


def test_a_loss_that_is_no_number_stops_the_run_and_is_not_saved(folder, tmp_path):
    with trainer(tmp_path, save=True, checkpoint_every=2) as t:
        t.run(2)
        table = t.state.parameters["table"]
        t.state.parameters["table"] = table.at[ord("r")].set(jnp.nan)
        with pytest.raises(UserError, match=r"(loss|gradient norm) of step 3 is nan") as fault:
            t.run(8)
        assert "step 2 is whole" in fault.value.help
        assert t._checkpoints.steps() == [2]


@pytest.mark.parametrize("fault, processes, said", [
    ("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes", 1, "more memory"),
    ("UNKNOWN: Gloo all-reduce failed: Connection reset by peer", 2, "another process"),
    ("UNKNOWN: Gloo all-reduce failed: Connection reset by peer", 1, "Gloo"),
    ("INTERNAL: a fault of ours", 2, "INTERNAL"),
])  # fmt: skip
def test_faults_of_the_machine_are_explained(folder, monkeypatch, fault, processes, said):
    def step(batches):
        monkeypatch.setattr(jax, "process_count", lambda: processes)
        raise jax.errors.JaxRuntimeError(fault)

    with trainer(folder) as t:
        monkeypatch.setattr(t, "_step", step)
        known = said in ("more memory", "another process")
        with pytest.raises(UserError if known else jax.errors.JaxRuntimeError, match=said):
            t.run(1)


def test_only_the_selected_parameters_are_trained(folder):
    text = LIGHT.replace("train:\n", "train:\n  params: [table, 'lm.*.feed.*']\n")
    with trainer(folder, text=text) as t:
        before = {n: np.array(a) for n, a in t.state.parameters.items()}
        t.run(2)
        for n, a in t.state.parameters.items():
            assert (np.array(a) == before[n]).all() == (n != "table" and ".feed." not in n), n
        moments = t.state.optimizers["train"]["adam"].mu
        assert set(moments) == {n for n in before if n == "table" or ".feed." in n}


def test_some_layers_of_a_stack_may_be_trained(folder):
    text = LIGHT.replace("train:\n", "train:\n  params: 'lm.layer[1]'\n")
    with trainer(folder, text=text) as t:
        before = scatter({n: np.array(a) for n, a in t.state.parameters.items()})
        t.run(2)
        after = scatter({n: np.array(a) for n, a in t.state.parameters.items()})
    assert "lm.layer[0:2].feed.glu.up.weight" in t.state.parameters
    for n in before:
        assert (after[n] == before[n]).all() == (not n.startswith("lm.layer[1]")), n


TWO = (
    LIGHT[: LIGHT.index("train:")]
    + """
train:
  data: text(tokens, length=16, heldout=0.2)
  updates:
    body:
      params: lm.*.feed.*
      repeat: 2
      loss: cross_entropy(lm(tokens).logits, next(tokens))
      optimizer: sgd(warmup_linear(0.1, warmup=4))
    rest:
      params: [table, lm.norm]
      loss: cross_entropy(lm(tokens).logits, next(tokens)) + mean(square(lm(tokens).logits))
      optimizer: adam(1e-2)
  batch: 8
  steps: 4
"""
)


def test_updates_run_in_order_each_with_data_of_its_own(folder):
    read = []
    with trainer(folder, text=TWO) as t:
        place, names = t._place, {id(u.inputs): u.name for u in t.updates.each}
        t._place = lambda to, batch: read.append((names[id(to)], batch["tokens"].tobytes())) or place(to, batch)
        result = t.run(2)
        assert [name for name, _ in read[:6]] == ["body", "body", "rest"] * 2
        assert [b for _, b in read[:6]] == [t.data.batch(i)["tokens"].tobytes() for i in range(6)]
        assert {"body/loss", "rest/loss", "body/heldout_loss", "rest/heldout_loss"} <= set(result.values)
        assert int(t.state.optimizers["body"]["rate"].count) == 4
        assert result.values["body/learning_rate"] == pytest.approx(0.1)  # that of its fourth update
        assert int(t.state.optimizers["rest"]["rate"].count) == 2


def test_a_signal_saves_and_stops(folder, tmp_path):
    class Observer(Losses):
        def step(self, step, tokens, values):
            if step == 2:
                signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with trainer(tmp_path, save=True, observer=Observer()) as t:
        result = t.run()
        assert result.signal == signal.SIGTERM and result.exit_code == 143
        assert t._checkpoints.steps() == [result.step] and 2 <= result.step <= 4
    assert signal.getsignal(signal.SIGTERM) is before
