import io
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event, SessionLog

from planform.runtime.errors import UserError
from planform.runtime.metrics import Metrics, read_metrics
from planform.runtime.progress import Progress

PACKAGE = str(Path(__file__).parents[2] / ".pkg")


def events(folder: Path) -> list[Event]:
    """What TensorBoard's files hold: records of length, checksum, message, checksum."""
    found = []
    for file in sorted((folder / "tensorboard").glob("events*"), key=lambda f: f.stat().st_mtime_ns):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def test_lines_and_events(tmp_path):
    with Metrics(tmp_path) as metrics:
        metrics.write(1, {"train/loss": jnp.float32(2.5), "train/rate": 1e-3})
        assert len(read_metrics(tmp_path)) == 1  # at once
        metrics.write(2, {"heldout/loss": 2, "train/loss": math.nan})
    one, two = read_metrics(tmp_path)
    assert one["step"] == 1 and one["train/loss"] == 2.5 and one["train/rate"] == 1e-3
    assert two["heldout/loss"] == 2 and two["train/loss"] is None
    assert one["time"] <= two["time"]
    json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1], parse_constant=lambda _: 1 / 0)
    scalars = [(e.step, v.tag, v.simple_value) for e in events(tmp_path) for v in e.summary.value]
    assert scalars[0] == (1, "train/loss", 2.5)
    assert [(step, tag) for step, tag, _ in scalars[2:]] == [(2, "heldout/loss"), (2, "train/loss")]
    assert math.isnan(scalars[3][2])


def test_a_resumed_run_has_no_doubles(tmp_path):
    with Metrics(tmp_path) as metrics:
        for step in range(1, 8):
            metrics.write(step, {"loss": step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')  # cut off by a kill
    with Metrics(tmp_path, resume=4) as metrics:
        for step in range(5, 7):
            metrics.write(step, {"loss": -step})
    assert [(m["step"], m["loss"]) for m in read_metrics(tmp_path)] == [
        (1, 1), (2, 2), (3, 3), (4, 4), (5, -5), (6, -6),
    ]  # fmt: skip
    starts = [e.step for e in events(tmp_path) if e.session_log.status == SessionLog.START]
    assert starts == [5]  # TensorBoard drops what it had from this step on


def test_a_kill_costs_no_line(tmp_path):
    script = f"""
import os, signal
from planform.runtime.metrics import Metrics
metrics = Metrics({str(tmp_path)!r})
for step in range(5):
    metrics.write(step, {{"loss": step}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    child = subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": PACKAGE})
    assert child.returncode == -9
    assert [m["step"] for m in read_metrics(tmp_path)] == list(range(5))


def test_other_processes_write_nothing(tmp_path):
    with Metrics(tmp_path / "run", enabled=False) as metrics:
        metrics.write(1, {"loss": 1})
    assert not (tmp_path / "run").exists()


def test_faults_are_the_users(tmp_path):
    with pytest.raises(UserError, match="no metrics"):
        read_metrics(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can't write metrics"):
        Metrics(tmp_path / "file")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def progress(clock: Clock, terminal: bool = False, **options) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    return Progress(100, console=console, clock=clock, **options), out


def test_plain_lines_come_at_intervals():
    clock = Clock()
    shown, out = progress(clock, every=10.0)
    for step in range(1, 101):
        clock.now += 1.0
        shown.update(step, 50, {"loss": 3.0})
    lines = out.getvalue().splitlines()
    assert len(lines) == 10 and lines[-1].startswith("step 100/100")
    assert lines[0] == "step 10/100  loss 3  50 tokens/s  1:30 left"


def test_speed_leaves_out_the_first_step_and_forgets():
    clock = Clock()
    shown, _ = progress(clock)
    clock.now += 60  # compiling
    shown.update(1, 1000, {})
    assert shown.speed is None and "left" not in shown.line(1, {})
    clock.now += 2
    shown.update(2, 1000, {})
    assert shown.speed == 500
    for step in range(3, 100):
        clock.now += 1
        shown.update(step, 1000, {})
    assert shown.speed == pytest.approx(1000)


def test_quiet_says_nothing():
    for terminal in (False, True):
        clock = Clock()
        shown, out = progress(clock, terminal, quiet=True, every=0.0)
        shown.update(1, 1, {"loss": 1})
        shown.note("saved")
        shown.close()
        assert out.getvalue() == ""


def test_a_terminal_gets_one_live_line():
    clock = Clock()
    shown, out = progress(clock, terminal=True)
    with shown:
        for step in range(1, 4):
            clock.now += 0.5
            shown.update(step, 100, {"loss": 2.25})
        shown.note("[saved] step 3")
    text = out.getvalue()
    assert "step 3/100  loss 2.25  200 tokens/s  0:48 left" in text
    assert "[saved] step 3" in text and "\x1b[" in text
