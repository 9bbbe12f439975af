"""The command line, as a user has it: with the environment that suits a CPU, which it gives itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def train(spec: str | Path, out: Path, overrides: Sequence[str] = (), **given: object) -> None:
    """`planform train SPEC --out OUT --set OVERRIDE .. --KEY VALUE ..`, on one device. Raises: RuntimeError with what
    it said."""
    words = [w for key, value in {"out": out, "mesh": "data=1", **given}.items() for w in (f"--{key}", str(value))]
    words += [w for override in overrides for w in ("--set", override)]
    command = [sys.executable, "-m", "planform", "train", str(spec), *words, "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
