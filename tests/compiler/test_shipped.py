"""The shipped models, all sizes, in every form and after every pass: valid, printed exactly, always the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.compiler.shipped import stages

from planform.compiler.ir import verify
from planform.compiler.text import from_text, to_text


def test_every_stage_is_valid_and_round_trips():
    seen = []
    for name, graph in stages():
        verify(graph)
        text = to_text(graph)
        assert to_text(from_text(text)) == text, name
        seen.append(name)
    assert any("27b" in name for name in seen) and len(seen) > 40


PROGRAM = """
import hashlib
from planform.compiler.text import to_text
from tests.compiler.shipped import stages

print(hashlib.sha256("".join(to_text(graph) for _, graph in stages()).encode()).hexdigest())
"""


def test_two_processes_compile_the_same_graphs():
    root = Path(__file__).parents[2]
    found = set()
    for seed in ("1", "2"):  # the order of sets of strings differs between these
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([str(root / ".pkg"), str(root)])}
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1
