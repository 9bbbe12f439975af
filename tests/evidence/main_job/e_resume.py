"""Exact resume: a run that SIGKILL ended at random moments and that was started again, against an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from planform.runtime.checkpoint import read_arrays, steps
from planform.runtime.metrics import read_metrics
from tests.evidence import row
from tests.runtime.training import ROOT, digest

STEPS, EVERY = 60, 5
PATIENCE = 600
"""Seconds that a run may take to get where it is to be killed."""


def begin(folder: Path) -> subprocess.Popen[bytes]:
    """The command that trains Gemma 2's small size, the same one whether it begins or goes on."""
    options = ["--set", f"train.checkpoint.every={EVERY}", "--steps", str(STEPS), "--batch", "4", "--length", "64"]
    return subprocess.Popen(
        [sys.executable, "-m", "planform", "train", "gemma2@small", "--out", str(folder), "--mesh", "data=2", *options],
        env={**os.environ, "PYTHONPATH": str(ROOT / ".pkg"), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_at_step(folder: Path, step: int) -> str:
    """Kills a run once its metrics have a step, a random moment later."""
    child = begin(folder)
    _wait(child, lambda: _last_step(folder) >= step)
    time.sleep(random.uniform(0, 0.5))
    _kill(child)
    return f"after step {step}"


def kill_in_save(folder: Path, step: int) -> str:
    """Kills a run while a checkpoint after a step is being written: it has no whole name yet."""
    child = begin(folder)
    unfinished: list[Path] = []

    def writing() -> bool:
        if _last_step(folder) < step:
            return False
        unfinished[:] = (folder / "checkpoints").glob("*.orbax-checkpoint-tmp*")
        return bool(unfinished)

    _wait(child, writing)
    _kill(child)
    left = [p.name for p in unfinished if p.exists()]
    if not left:  # it was renamed in the very moment: not what is to be shown
        return kill_in_save(folder, step)
    return f"in the save of step {left[0].partition('.')[0]}"


def _wait(child: subprocess.Popen[bytes], done: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        if child.poll() is not None:
            raise RuntimeError("the run ended before it was killed")
        if time.monotonic() > deadline:
            child.kill()
            raise RuntimeError("the run took too long")
        time.sleep(0.002)


def _kill(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGKILL)
    if child.wait() != -signal.SIGKILL:
        raise RuntimeError("the run ended before it was killed")


def _last_step(folder: Path) -> int:
    try:
        return int(read_metrics(folder)[-1]["step"])
    except Exception:  # there are none yet
        return 0


@row(
    "main_job",
    "resume",
    "killed with SIGKILL three times at random, once in the middle of a save, and started again: the final state "
    "(parameters and optimizer) and every loss on the way bit-identical to those of an undisturbed run",
    5,
)
def resume() -> tuple[Any, bool]:
    with tempfile.TemporaryDirectory() as name:
        whole, killed = Path(name, "undisturbed"), Path(name, "killed")
        if begin(whole).wait() != 0:
            raise RuntimeError("the undisturbed run failed")
        how = [kill_at_step(killed, random.randint(1, STEPS // 3))]
        how.append(kill_in_save(killed, random.randint(STEPS // 3 + 1, STEPS // 2)))
        how.append(kill_at_step(killed, random.randint(STEPS // 2 + 1, STEPS - EVERY)))
        if begin(killed).wait() != 0:
            raise RuntimeError("the resumed run failed")
        states = [read_arrays(f, STEPS) for f in (whole, killed)]
        losses = [{m["step"]: m["loss"] for m in read_metrics(f) if "loss" in m} for f in (whole, killed)]
        same_state = digest(states[0]) == digest(states[1])
        same_losses = losses[0] == losses[1] and list(losses[0]) == list(range(1, STEPS + 1))
        holds = same_state and same_losses and steps(whole)[-1] == steps(killed)[-1] == STEPS
    figure = {
        "killed": how,
        "arrays compared": len(states[0]),
        "bit-identical": same_state,
        "losses identical": same_losses,
        "first and last loss": [round(losses[0][1], 4), round(losses[0][STEPS], 4)],
    }
    return figure, holds
