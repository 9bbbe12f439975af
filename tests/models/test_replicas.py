"""TF-Replicator's three programs on eight devices and in two processes, from equal beginnings to equal ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.models.replicas_run import PROGRAMS, apart

pytest.importorskip("rlax")
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("model", PROGRAMS)
def test_eight_devices_and_two_processes_go_the_way_of_one(model: str, tmp_path: Path) -> None:
    found = apart(model, tmp_path)
    assert max(found.values()) < 1e-6, found
