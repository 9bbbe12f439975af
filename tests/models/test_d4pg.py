"""D4PG against the same learner by hand with rlax, and on one replica against eight."""

from __future__ import annotations

import pytest
from tests.models.d4pg_run import measured

pytest.importorskip("rlax")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    return measured()


def test_the_learner_is_the_one_written_with_rlax(found: dict[str, float]) -> None:
    """Ten steps, targets copied after three, six and nine."""
    assert found["ours, by hand"] < 1e-3


@pytest.mark.parametrize("model", ["d4pg", "d4pg_pixels"])
def test_one_replica_and_eight_go_the_same_way(found: dict[str, float], model: str) -> None:
    assert found[f"{model}: eight devices, one"] < 1e-3
