"""Agents: transitions of n steps, replay, pace, environments, actors here and in processes of their own."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import chisquare

from planform.backends.reference import run
from planform.backends.xla import Policy
from planform.compiler.elaborate import elaborate
from planform.compiler.parameters import initial, layers
from planform.compiler.program import Program, program
from planform.runtime.agents import open_replay, play_of
from planform.runtime.agents.crew import Crew, Hire
from planform.runtime.agents.environment import Environment
from planform.runtime.agents.export import policy_of
from planform.runtime.agents.play import play
from planform.runtime.agents.policy import Acting
from planform.runtime.agents.process import Process
from planform.runtime.agents.replay import Pace, Replay, SumTree
from planform.runtime.agents.source import ReplayData
from planform.runtime.agents.transitions import Steps
from planform.runtime.data import Share
from planform.runtime.errors import UserError
from planform.runtime.evaluate import as_it_ran, evaluate_run
from planform.runtime.mesh import make_mesh
from planform.runtime.train import as_agent, train
from planform.runtime.trainer import Trainer
from planform.runtime.updates import Layout
from planform.spec import load, load_text


def transitions_of(rewards: list[float], discounts: list[float], ends: list[int], n: int, gamma: float, room: int):
    """Steps taken in chunks of `room`, episodes ending after the steps in `ends`; the observation counts steps."""
    steps, found, clock = Steps(n, gamma, room), [], 0
    steps.begin(np.array([clock], np.float32))
    for i, (reward, discount) in enumerate(zip(rewards, discounts)):
        clock += 1
        steps.add(np.array([i], np.float32), reward, discount, np.array([clock], np.float32))
        if i in ends or (i + 1) % room == 0:
            found.append(steps.transitions(ended=i in ends))
        if i in ends:
            clock += 100
            steps.begin(np.array([clock], np.float32))
    return {k: np.concatenate([f[k] for f in found]) for k in found[0]}


@pytest.mark.parametrize("room", [1, 3, 4, 64])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_transitions_of_n_steps_are_the_sums_written_out(n: int, room: int) -> None:
    """Whatever the chunks: each step once, windows that end with their episode, a terminal step that ends the sum."""
    rng = np.random.default_rng(0)
    rewards, discounts, ends, gamma = rng.normal(size=24).tolist(), [1.0] * 24, [8, 15, 23], 0.9
    discounts[8] = 0.0  # the first episode ends for good, the others because their time is up
    discounts[3] = 0.5
    found = transitions_of(rewards, discounts, ends, n, gamma, room)
    order = np.argsort(found["action"][:, 0], kind="stable")
    assert found["action"][order, 0].tolist() == list(range(24))
    first = 0
    for i, row in enumerate(order):
        last = next(e for e in ends if e >= i)
        first = {0: 0, 9: 9, 16: 16}.get(i, first)
        total, factor, j = 0.0, 1.0, i
        while j <= last and j < i + n:
            total += factor * rewards[j]
            factor *= gamma * discounts[j]
            j += 1
        offset = 100 * ends.index(last)
        assert found["reward"][row] == pytest.approx(total, rel=1e-5, abs=1e-6)
        assert found["discount"][row] == pytest.approx(factor, rel=1e-6)
        assert found["observation"][row, 0] == i + offset and found["next_observation"][row, 0] == j + offset


def test_replay_keeps_the_newest_and_draws_evenly() -> None:
    replay = Replay(capacity=50)
    for first in range(0, 130, 26):
        replay.insert({"x": np.arange(first, first + 26), "y": np.arange(first, first + 26) * 2.0})
    _, rows = replay.draw(20_000, np.random.default_rng(0))
    values, counts = np.unique(rows["x"], return_counts=True)
    assert values.tolist() == list(range(80, 130))
    assert chisquare(counts).pvalue > 1e-3
    np.testing.assert_array_equal(rows["y"], 2 * rows["x"])


def test_priorities_draw_in_proportion_and_weights_take_it_back() -> None:
    replay = Replay(capacity=37, exponent=0.6)
    replay.insert({"x": np.arange(30)})
    priorities = np.linspace(0.1, 3, 30)
    replay.prioritise(np.arange(30), priorities)
    at, rows = replay.draw(60_000, np.random.default_rng(1))
    np.testing.assert_array_equal(at, rows["x"])
    share = (priorities + 1e-6) ** 0.6
    share /= share.sum()
    counts = np.bincount(at, minlength=30)
    np.testing.assert_allclose(counts / len(at), share, rtol=0.05)
    assert rows["weight"].max() == 1
    # A mean that is weighted is that over all rows, however they are drawn.
    assert np.average(rows["x"], weights=rows["weight"]) == pytest.approx(14.5, rel=0.01)
    replay.insert({"x": np.arange(30, 60)})  # what is new comes first, and nothing beyond the end is drawn
    at, rows = replay.draw(5000, np.random.default_rng(2))
    assert at.max() == 36 and np.isin(np.arange(30, 60), rows["x"]).all()


@pytest.mark.parametrize("capacity", [1, 2, 5, 8, 1000])
def test_the_tree_finds_what_a_plain_sum_finds(capacity: int) -> None:
    rng = np.random.default_rng(capacity)
    tree, values = SumTree(capacity), np.zeros(capacity)
    for _ in range(3):
        at = rng.integers(capacity, size=min(capacity, 50))
        values[at] = new = np.round(rng.exponential(size=len(at)), 3)[: len(at)]
        for i, v in zip(at, new):
            values[i] = v
        tree.set(at, values[at])
        assert tree.total == pytest.approx(values.sum())
        points = rng.random(200) * values.sum()
        np.testing.assert_array_equal(tree.find(points), np.searchsorted(np.cumsum(values), points, side="right"))


def test_neither_side_runs_ahead() -> None:
    """Actors and a learner that never rest: in any order the ratio is kept from the first draw, nobody sticks."""
    rng, chunk, batch = np.random.default_rng(0), 64, 256
    pace = Pace(ratio=32, first=1000, slack=max(3200, chunk * 32 + batch))
    for _ in range(20_000):
        can = [pace.may_insert(chunk), pace.may_draw(batch)]
        assert any(can)
        if can[1] and (not can[0] or rng.random() < 0.5):
            assert pace.inserted >= 1000
            pace.drawn += batch
        else:
            pace.inserted += chunk
        assert abs(pace.drawn - 32 * (pace.inserted - 1000)) <= pace.slack or pace.inserted <= 1000 + chunk
    assert pace.drawn / (pace.inserted - 1000) == pytest.approx(32, rel=0.01)


# -- with MuJoCo -----------------------------------------------------------------------------------------

AGENT = """
planform: 1
extends: d4pg
model: small
dims: {policy_width: 32, policy_depth: 16, value_width: 32, value_depth: 16}
train:
  data: |
    replay(observation, action, reward, discount, next_observation,
           environment="cartpole:balance", policy="slow_actor", actors=0, first=200, ratio=16)
  batch: 32
  steps: 12
  evaluate: {every: 12, batches: 1}
"""

BY_PRIORITY = (
    AGENT.replace("next_observation,", "next_observation, weight,")
    .replace("ratio=16)", "ratio=16, priority=0.6)")
    .replace(
        "  batch: 32",
        """\
  updates:
    critic:
      loss: |
        future = slow_critic(next_observation, slow_actor(next_observation).action).logits
        target = project(softmax(future), linspace(-most, most, atoms), reward, discount)
        error = -sum(stop(target) * log_softmax(critic(observation, action).logits), atoms)
        mean(weight * error)
      priority: error
  batch: 32""",
    )
)


def agent(*overrides: str) -> Program:
    pytest.importorskip("dm_control")
    return program(load_text(AGENT, overrides=overrides))


def weights_of(p: Program) -> dict[str, np.ndarray]:
    assert p.policy is not None
    return initial(p.policy.weights, 3)


DEEP = """
planform: 1
model: deep
dims: {d: 8}
graphs:
  actor:
    inputs:
      seen: float[batch, 3]
    body: |
      h = seen >> linear(d, bias=true) >> (id + (layer_norm(bias=true) >> linear(d) >> elu)) ^ 3
      done = h >> linear(2) >> tanh
      other = h >> square
    outputs: [other, done]
"""


@pytest.mark.parametrize("text, action", [(AGENT, "action"), (DEEP, "done")], ids=["d4pg", "of repeated layers"])
def test_the_policy_in_onnxruntime_is_the_graph(text: str, action: str) -> None:
    graph = elaborate(load_text(text), "actor")
    policy = policy_of(graph, action)
    assert set(policy.weights) == {n for w in graph.weights for n in layers(w.path)}
    acting, rng = Acting(policy), np.random.default_rng(0)
    for seed in (0, 1):  # new weights in the same session
        weights = {n: w + rng.normal(0, 0.1, w.shape) for n, w in initial(graph.weights, seed).items()}
        acting.load(weights)
        x = rng.normal(size=policy.shape).astype(np.float32)
        want = run(graph, weights, {policy.observation: x[None]})[action][0]
        np.testing.assert_allclose(acting(x), want, atol=1e-6)


def test_an_actor_s_process_loads_neither_jax_nor_the_compiler() -> None:
    code = "import sys, planform.runtime.agents.process\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = ("jax", "planform.compiler", "planform.spec", "onnx_ir", "dm_control")
    assert not [m for m in loaded if m.startswith(heavy)]


def test_actions_reach_the_ends_of_their_ranges_and_repeat() -> None:
    pytest.importorskip("dm_control")
    one, two = (Environment("acrobot:swingup", (6,), 1, seed=4, repeat=n) for n in (1, 2))
    np.testing.assert_array_equal(one.reset(), two.reset())
    assert one.seconds * 2 == two.seconds
    spec = one._env.action_spec()
    for action in (-7.0, -1.0, 0.25, 1.0):
        rewards = [one.step(np.array([action])).reward for _ in range(2)]
        want = spec.minimum + (np.clip(action, -1, 1) + 1) / 2 * (spec.maximum - spec.minimum)
        np.testing.assert_allclose(one._env.physics.control(), want)
        step = two.step(np.array([action]))
        assert step.reward == pytest.approx(sum(rewards)) and step.discount == 1 and not step.last
    count = 8
    while not step.last:
        step, count = two.step(np.array([0.0])), count + 2
    assert count == 1000 and step.discount == 1  # its time was up: what follows counts


def test_frames_are_the_newest_pictures_oldest_first() -> None:
    pytest.importorskip("dm_control")
    environment = Environment("cartpole:balance", (24, 32, 9), 1, seed=0)
    seen = environment.reset()
    assert seen.shape == (24, 32, 9) and seen.dtype == np.uint8 and seen.std() > 5
    np.testing.assert_array_equal(seen[..., :3], seen[..., 6:])
    for _ in range(4):
        after = environment.step(np.ones(1)).observation
        np.testing.assert_array_equal(after[..., :6], seen[..., 3:])
        assert (after[..., 6:] != after[..., 3:6]).any()
        seen = after


@pytest.mark.parametrize("name, sizes, said", [
    ("cartpole:balanse", (5, 1), "there is no environment cartpole:balanse"),
    ("cartpole:balance", (6, 1), "has 5 observations and 1 actions, the model 6 and 1"),
    ("reacher:easy", (6, 1), "has 6 observations and 2 actions"),
])  # fmt: skip
def test_environments_that_do_not_fit(name: str, sizes: tuple[int, int], said: str) -> None:
    pytest.importorskip("dm_control")
    with pytest.raises(UserError, match=said):
        Environment(name, (sizes[0],), sizes[1])


RENDERING = """
import ctypes, os, sys
load = ctypes.CDLL.__init__
def hiding(self, name, *rest, **more):
    if any(hidden in str(name) for hidden in sys.argv[1:]):
        raise OSError(name)
    load(self, name, *rest, **more)
ctypes.CDLL.__init__ = hiding
from planform.runtime.agents.environment import Environment
from planform.runtime.errors import UserError
states = Environment("cartpole:balance", (5,), 1)
states.reset()
try:
    print(os.environ["MUJOCO_GL"], states.picture(24, 32).std() > 5)
except UserError as error:
    print(os.environ["MUJOCO_GL"], error, "|", error.help)
"""


@pytest.mark.parametrize("hidden, found", [
    ([], "egl True"),
    (["EGL", "OSMesa"], "disabled this machine can't render with MUJOCO_GL=disabled: No OpenGL rendering backend"),
])  # fmt: skip
def test_a_renderer_is_found_where_none_is_named(hidden: list[str], found: str) -> None:
    """Whatever was wanted first: states are trained on, then filmed in the same process."""
    pytest.importorskip("dm_control")
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY")}
    done = subprocess.run([sys.executable, "-c", RENDERING, *hidden], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(found), done.stdout


def gathered(p: Program, batches: int, file: Path | None = None, **more: int) -> list[dict[str, np.ndarray]]:
    data = ReplayData(play_of(p), p.data.fields, Share(p.batch), p.seed, first=200, ratio=16.0, file=file, **more)
    data.follow(0, lambda names: weights_of(p))
    source = data.batches()
    found = [next(source) for _ in range(batches)]
    source.close()  # type: ignore[attr-defined]
    return found


def test_in_one_process_a_run_is_repeatable() -> None:
    p = agent()
    one, two = gathered(p, 30, actors=0), gathered(p, 30, actors=0)
    assert one[0].keys() == set(p.data.fields)
    for a, b in zip(one, two):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    assert one[0]["observation"].shape == (32, 5) and one[0]["reward"].shape == (32,)
    assert (one[5]["reward"] > 0).all() and one[5]["discount"] == pytest.approx(0.99**5)


def test_actors_in_processes_end_with_the_run_and_come_back_when_killed(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered, played = Process.gathered, set()

    def seen(self: Process) -> Any:
        found = gathered(self)
        played.add(id(self))
        return found

    monkeypatch.setattr(Process, "gathered", seen)
    p = agent()
    data = ReplayData(play_of(p), p.data.fields, Share(p.batch), p.seed, actors=2, first=200, ratio=16.0)
    data.follow(0, lambda names: weights_of(p))
    source = data.batches()
    next(source)
    begun = 1
    while len(played) < 2:  # one that dies before it has played isn't started again
        next(source)
        begun += 1
    children = multiprocessing.active_children()
    assert len(children) == 2
    os.kill(children[0].pid, signal.SIGKILL)  # type: ignore[arg-type]
    for _ in range(400):
        next(source)
    assert data._pace.drawn == (400 + begun) * 32
    assert abs(data._pace.drawn - 16 * (data._pace.inserted - 200)) <= data._pace.slack
    source.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()
    assert "ended with exit code -9; it is started again" in capfd.readouterr().err


def assert_answered(hire: Hire) -> None:
    """Without noise an actor that is given weights of zeros stands still, from the chunk after those under way."""
    p = agent()
    weights = weights_of(p)
    player = hire(replace(play_of(p), noise=0.0), (0,), weights)
    seen = []
    for answer in ({n: np.zeros_like(a) for n, a in weights.items()}, None, None, None):
        seen.append(np.abs(player.gathered()[0]["action"]).max())
        player.answer(answer)
    assert player.end()
    assert seen[0] > 0 and seen[1] > 0 and seen[3] == 0  # of the third chunk some transitions began before


def test_weights_go_out_with_an_answer() -> None:
    assert_answered(Process)


def test_a_crew_sends_weights_that_are_new_and_only_these() -> None:
    class Told:
        answers: list[Any] = []

        def __init__(self, *hired: Any) -> None:
            self.begins_with = hired[-1]

        def gathered(self) -> tuple[Any, list[float]]:
            return {}, []

        def answer(self, weights: Any) -> None:
            self.answers.append(weights)

        def end(self) -> str:
            return "the run"

        def kill(self) -> None:
            pass

    first, second = {"w": np.zeros(1)}, {"w": np.ones(1)}
    newest = iter([first, first, second, second, first])
    seen, closing = threading.Event(), threading.Event()

    def take(*gathered: Any) -> bool:
        if len(Told.answers) < 4:
            return True
        seen.set()
        return not closing.wait(10)

    crew = Crew(1, Told, play_of(agent()), (0,), take, lambda: next(newest), lambda fault: None)
    assert seen.wait(10)
    crew._closing = True  # before it is told that nothing is taken any more
    closing.set()
    crew.close()
    assert crew._players[0].begins_with is first  # type: ignore[attr-defined]
    assert [a if a is None else a["w"][0] for a in Told.answers] == [None, 1.0, None, 0.0]


def test_without_ray_and_without_a_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    p = agent()
    with pytest.raises(UserError, match="nobody plays on the Ray cluster"):
        open_replay(p, Share(p.batch), tmp_path, "auto")
    with pytest.raises(UserError, match="need Ray, which isn't installed"):
        open_replay(p.having(actors=2), Share(p.batch), tmp_path, "auto")


def test_options_of_agents_where_there_is_none() -> None:
    other = program(load("gemma2", "small"))
    assert as_agent(other) == other
    with pytest.raises(UserError, match="learns from text, not in an environment") as fault:
        as_agent(other, environment=None, actors=2, ray="auto")
    assert fault.value.help == "leave --actors and --ray out"


def test_an_actor_that_can_not_play_ends_the_run() -> None:
    p = agent()
    play = play_of(p)
    data = ReplayData(play, p.data.fields, Share(p.batch), p.seed, actors=1)
    data.play = replace(play, policy=replace(play.policy, model=b"broken"))
    data.follow(0, lambda names: weights_of(p))
    with pytest.raises(UserError, match="actor 0 ended with exit code 1 before it had played"):
        next(data.batches())


def test_what_was_seen_is_kept_between_two_runs(tmp_path: Path) -> None:
    p = agent()
    gathered(p, 30, tmp_path / "replay.npz", actors=0)
    data = ReplayData(play_of(p), p.data.fields, Share(p.batch), 1, actors=0, first=200, ratio=16.0,
                      file=tmp_path / "replay.npz")  # fmt: skip
    data.follow(0, lambda names: weights_of(p))
    with closing(data.batches(30)) as source:
        batch = next(source)
    seen = np.load(tmp_path / "replay.npz")["observation"]
    assert all((seen == row).all(1).any() for row in batch["observation"])
    assert list(tmp_path.iterdir()) == [tmp_path / "replay.npz"]


def test_training_evaluates_plays_and_films(tmp_path: Path) -> None:
    pytest.importorskip("dm_control")
    spec = load_text(AGENT)
    result = train(spec, tmp_path / "run", quiet=True)
    assert result.step == 12 and 0 < result.values["episode_return"] < 1000
    found = play(tmp_path / "run", tmp_path / "film", episodes=1, seconds=0.4, size=(48, 64))
    assert found["environment"] == "cartpole:balance" and len(found["returns"]) == 1
    with Image.open(tmp_path / "film" / "episode.gif") as film:
        assert film.size == (64, 48) and film.n_frames == 10
    told = json.loads((tmp_path / "film" / "returns.json").read_text())
    assert told["returns"] == found["returns"]
    again = train(spec, tmp_path / "run", quiet=True, steps=14)  # goes on with what was seen
    assert again.step == 14
    measured = evaluate_run(tmp_path / "run", batches=1)
    assert measured["episode_return"] == again.values["episode_return"] and measured["step"] == 14


def test_a_run_plays_where_it_learned() -> None:
    told = {"data": {"environment": "cartpole:swingup"}}
    assert as_it_ran(load_text(AGENT), told).data.arguments["environment"] == "cartpole:swingup"
    assert as_it_ran(load_text(AGENT), {}).data.arguments["environment"] == "cartpole:balance"


@pytest.mark.slow
def test_training_from_pictures(tmp_path: Path) -> None:
    pytest.importorskip("dm_control")
    text = """
planform: 1
extends: d4pg_pixels
model: tiny
dims: {height: 12, width: 16, filters: 4, features: 8}
train:
  data: |
    replay(observation, action, reward, discount, next_observation, environment="cartpole:balance",
           policy="slow_actor", repeat=50, capacity=300, actors=1, first=100, ratio=16)
  batch: 32
  steps: 6
  evaluate: {every: 6, batches: 1}
"""
    result = train(load_text(text), tmp_path / "run", quiet=True)
    assert result.step == 6 and 0 < result.values["episode_return"] < 1000
    with np.load(tmp_path / "run" / "replay.npz") as seen:
        assert seen["observation"].dtype == np.uint8 and seen["observation"].shape[1:] == (12, 16, 9)


def test_asked_to_stop_a_run_saves_and_leaves_nobody_behind(tmp_path: Path) -> None:
    pytest.importorskip("dm_control")
    (tmp_path / "agent.yaml").write_text(AGENT.replace("actors=0", "actors=2"))
    command = [sys.executable, "-m", "planform", "train", str(tmp_path / "agent.yaml"), "--out", str(tmp_path / "run"),
               "--steps", "1000000", "--set", "train.evaluate.every=100000"]  # fmt: skip
    # A session of its own: Ctrl-C goes to all processes of a terminal, the actors among them.
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step"):
            break
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    assert (tmp_path / "run" / "replay.npz").is_file()
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # what Python itself keeps for its processes ends a moment later
            os.killpg(process.pid, 0)
            time.sleep(0.1)


@pytest.mark.slow
def test_two_processes_play_for_themselves_and_learn_as_one(tmp_path: Path) -> None:
    """By priority, the policy's weights split over the processes."""
    pytest.importorskip("dm_control")
    split = "sharding: {batch: [data, fsdp], policy_width: [fsdp, tensor]}\ntrain:\n"
    (tmp_path / "agent.yaml").write_text(BY_PRIORITY.replace("actors=0", "actors=1").replace("train:\n", split))
    command = [sys.executable, "-m", "planform", "train", str(tmp_path / "agent.yaml"), "--out", str(tmp_path / "run"),
               "--processes", "2", "--json", "--quiet", "--mesh"]  # fmt: skip
    done = subprocess.run([*command, "fsdp=2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["step"] == 12 and 0 < told["episode_return"] < 1000
    one, two = (np.load(tmp_path / "run" / name)["observation"] for name in ("replay.npz", "replay1.npz"))
    assert len(one) >= 200 and len(two) >= 200 and (one[:200] != two[:200]).any(1).all()
    done = subprocess.run([*command, "tensor=2"], capture_output=True, text=True)
    assert done.returncode and "2 processes see 2 things" in done.stderr


def test_the_learner_says_how_much_there_was_to_learn(tmp_path: Path) -> None:
    pytest.importorskip("dm_control")
    p = program(load_text(BY_PRIORITY))
    data = open_replay(p, Share(p.batch), tmp_path)
    drawn, draw = [], data._replay.draw

    def remembered(*args: Any) -> Any:
        drawn.append(draw(*args))
        return drawn[-1]

    data._replay.draw = remembered  # type: ignore[method-assign]
    with Trainer(p, data, Layout(make_mesh({"data": 1}), (), Policy())) as trainer:
        loss = p.updates[0].loss
        weights = trainer.state.logical([n for w in loss.weights for n in layers(w.path)])
        trainer.run(1)
        (at, rows), *_ = drawn
        batch = {name: rows[field] for field, name in data._names.items()}
        errors = run(loss, weights, batch)["priority"]
        assert data._replay._tree is not None and np.ptp(errors) > 0
        np.testing.assert_allclose(data._replay._tree.values(at), (errors + 1e-6) ** 0.6, rtol=1e-4)
        trainer.run(12)
    assert len(drawn) == 12 and not data._drawn
