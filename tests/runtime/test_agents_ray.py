"""Actors on a Ray cluster of this machine. Ray is an extra that the tests don't need: without it they are skipped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.runtime.test_agents import agent, assert_answered, weights_of

ray = pytest.importorskip("ray", reason='needs pip install "planform[ray]"')
pytestmark = pytest.mark.slow

from planform.runtime.agents import play_of  # noqa: E402
from planform.runtime.agents.ray import on_ray  # noqa: E402
from planform.runtime.agents.source import ReplayData  # noqa: E402
from planform.runtime.data import Share  # noqa: E402
from planform.runtime.errors import UserError  # noqa: E402


@pytest.fixture(scope="module")
def hire() -> Iterator[Any]:
    yield on_ray("local")
    ray.shutdown()


class Counted:
    """Where two actors play for a source: those that it hired, in any order, each with its `chunks`."""

    def __init__(self, hire: Any) -> None:
        p = agent()
        self.hire, self.hired = hire, list[Any]()
        self.data = ReplayData(
            play_of(p), p.data.fields, Share(p.batch), p.seed, actors=2, hire=self, first=200, ratio=16
        )
        self.data.follow(0, lambda names: weights_of(p))

    def __call__(self, *args: Any) -> Any:
        player = self.hire(*args)
        gathered, player.chunks = player.gathered, 0

        def counted() -> Any:
            found = gathered()
            player.chunks += 1
            return found

        player.gathered = counted
        self.hired.append(player)
        return player


def test_actors_play_come_back_when_killed_and_end_with_the_run(hire: Any, capfd: pytest.CaptureFixture[str]) -> None:
    counted = Counted(hire)
    source = counted.data.batches()
    assert next(source)["observation"].shape == (32, 5)
    while len(counted.hired) < 2 or not all(player.chunks for player in counted.hired):
        next(source)
    counted.hired[0].kill()
    while len(counted.hired) < 3 or not counted.hired[2].chunks:
        batch = next(source)
    assert (batch["reward"] > 0).all()
    assert "; it is started again" in capfd.readouterr().err
    source.close()  # type: ignore[attr-defined]
    for player in counted.hired:
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(player._actor.gather.remote())


def test_weights_go_out_with_an_answer(hire: Any) -> None:
    assert_answered(hire)


def test_an_actor_that_can_not_play_ends_the_run(hire: Any) -> None:
    data = Counted(hire).data
    data.play = replace(data.play, environment="cartpole:balanse")
    with pytest.raises(UserError, match="there is no environment cartpole:balanse before it had played"):
        next(data.batches())
