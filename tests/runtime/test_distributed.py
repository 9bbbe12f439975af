"""Several processes as one run: their losses, their ends, and options that make no sense."""

import json
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
from tests.runtime.training import LIGHT, ROOT, corpus, finish, start

from planform.runtime import distributed
from planform.runtime.errors import UserError


def pair(job, devices=1):
    port = distributed.free_port()
    return [start(job, devices, f"{i}/2/127.0.0.1:{port}") for i in range(2)]


def test_two_processes_train_as_one(tmp_path):
    corpus(tmp_path / "text")
    job = {"folder": str(tmp_path), "text": LIGHT, "meshes": ["data=2"], "steps": 4, "overrides": ["layers=2"]}
    alone = finish(start({**job, "meshes": ["data=1"]}))["data=1"]
    both = [finish(child)["data=2"] for child in pair({**job, "save": True, "checkpoint_every": 2})]
    assert both[0]["losses"] == both[1]["losses"]
    np.testing.assert_allclose(both[0]["losses"], alone["losses"], rtol=1e-5)
    again = [finish(child)["data=2"] for child in pair({**job, "save": True, "steps": 6})]
    assert [r["steps"] for r in again] == [[5, 6], [5, 6]]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=2,fsdp=2", "tensor=2,data=2", "fsdp=2,tensor=2"])
def test_meshes_over_processes(tmp_path, mesh):
    corpus(tmp_path / "text")
    job = {"folder": str(tmp_path), "meshes": [mesh], "steps": 5, "overrides": ["layers=2"], "compute": "f64"}
    alone = finish(start({**job, "meshes": ["data=1"]}))["data=1"]
    for found in [finish(child)[mesh] for child in pair(job, 2)]:
        np.testing.assert_allclose(found["losses"], alone["losses"], rtol=1e-12)


def test_sigterm_to_one_stops_all_after_the_same_step(tmp_path):
    corpus(tmp_path / "text")
    job = {"folder": str(tmp_path), "text": LIGHT, "meshes": ["data=2"], "steps": 100000, "save": True,
           "overrides": ["layers=2"], "checkpoint_every": 100000}  # fmt: skip
    children = pair(job)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(4)
    children[1].send_signal(signal.SIGTERM)
    found = [finish(child)["data=2"] for child in children]
    assert [r["signal"] for r in found] == [signal.SIGTERM] * 2
    assert found[0]["steps"] == found[1]["steps"]
    saved = [int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()]
    assert saved == found[0]["steps"][-1:]


def child(code):
    return [sys.executable, "-c", f"import os, sys, time, signal; me = int(os.environ['PLANFORM_PLACE'][0]); {code}"]


def test_spawn_gives_each_a_place(tmp_path):
    assert distributed.spawn(3, child(f"open(r'{tmp_path}/' + str(me), 'w').write(os.environ['PLANFORM_PLACE'])")) == 0
    places = [distributed._place({"PLANFORM_PLACE": (tmp_path / str(i)).read_text()}) for i in range(3)]
    assert [(p.process, p.processes) for p in places] == [(0, 3), (1, 3), (2, 3)]
    assert len({p.coordinator for p in places}) == 1


@pytest.mark.parametrize("failing", [0, 1])
def test_spawn_ends_all_when_one_fails(failing, monkeypatch, capfd):
    monkeypatch.setattr(distributed, "GRACE", 0.3)
    begun = time.monotonic()
    code = f"me == {failing} and (sys.stderr.write('the disk is full'), sys.exit(7)); time.sleep(60)"
    assert distributed.spawn(2, child(code)) == 7
    assert time.monotonic() - begun < 20
    assert "the disk is full" in capfd.readouterr().err


def test_spawn_tells_of_a_kill(capfd):
    assert distributed.spawn(2, child("me and os.kill(os.getpid(), signal.SIGKILL)")) == 128 + signal.SIGKILL
    assert "process 1 of 2 was ended by signal 9" in capfd.readouterr().err


def test_spawn_hands_signals_on():
    code = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); time.sleep(60)"
    threading.Timer(2.0, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    before = signal.getsignal(signal.SIGTERM)
    assert distributed.spawn(2, child(code)) == 143
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("options, said", [
    ((0, None, None), "0 processes"),
    ((None, 1, None), "needs all of"),
    ((2, None, "host:1"), "needs all of"),
    ((2, 2, "host:1"), "no process 2"),
    ((2, 0, "host"), "no address"),
])  # fmt: skip
def test_options_that_make_no_sense(options, said):
    with pytest.raises(UserError, match=said) as fault:
        distributed.begin(*options)
    assert fault.value.help


def test_alone():
    assert distributed.begin() is None and distributed.begin(1) is None
    assert distributed.processes() == 1 and distributed.neighbours() == 1


@pytest.mark.slow
def test_command_line_starts_processes(tmp_path):
    import subprocess

    corpus(tmp_path / "text")
    spec = tmp_path / "tiny.yaml"
    spec.write_text(LIGHT)
    done = subprocess.run(
        [sys.executable, "-m", "planform", "train", str(spec), "--processes", "2", "--files", str(tmp_path / "text"),
         "--out", str(tmp_path / "out"), "--steps", "4", "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT / ".pkg")}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 4
    assert json.loads((tmp_path / "out" / "run.json").read_text())["processes"] == 2
