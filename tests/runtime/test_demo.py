"""The whole main job, with a handful of training steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_main_job_from_end_to_end(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "planform", "demo", "--out", str(tmp_path / "run"), "--steps", "4", "--json"]
    found = subprocess.run(command, capture_output=True, text=True)  # a process of its own: it makes its own devices
    assert found.returncode == 0, found.stderr
    figures = json.loads(found.stdout.splitlines()[-1])
    assert figures["verified"] and figures["steps"] == 4 and set(figures["errors"]) == {"xla", "onnx", "artefact"}
    assert max(figures["errors"].values()) < 2e-5
    assert 3 < figures["bigram_bits_per_byte"] < 4 < figures["bits_per_byte"] < 8.5
    assert figures["text"].startswith("def __init__(self, ")
    assert (tmp_path / "run" / "onnx" / "contract.json").is_file()
    for title in ("check", "train", "evaluate", "export", "verify", "generate"):
        assert title in found.stderr
