"""Several processes as one run, by jax.distributed; on CPUs gloo carries what they exchange.

`begin` is all that a command needs. On one machine `--processes 2` starts them: the command runs again once per
process, each finds its place in the environment. On several machines each is started by hand (or a scheduler) with
`--processes N --process I --coordinator HOST:PORT`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

import jax

from .errors import UserError

PLACE = "PLANFORM_PLACE"
"""Environment of a started process: `process/processes/coordinator`."""

GRACE = 20.0
"""Seconds that the others have to end by themselves when one has failed."""


_joined: Place | None = None


@dataclass(frozen=True)
class Place:
    """One process of a run: its index, how many there are, and where process 0 listens."""

    process: int
    processes: int
    coordinator: str


def begin(
    processes: int | None = None,
    process: int | None = None,
    coordinator: str | None = None,
    command: Sequence[str] | None = None,
) -> int | None:
    """Takes this process's place in a run; must come before anything uses a device.

    Returns None to go on: alone, or as one of several. In the process that starts the others (`processes` alone was
    given) it returns their exit code when all have ended.
    command  what to start; this very command by default
    Raises: UserError for options that don't fit together, or when the processes can't find each other.
    """
    place = _place(os.environ) or _chosen(processes, process, coordinator)
    if place:
        join(place)
        return None
    if not processes or processes == 1:
        return None
    return spawn(processes, command or [sys.executable, *_this_command()])


def processes() -> int:
    """How many processes the run has; unlike jax's own count it may be asked before devices are chosen."""
    if _joined:
        return _joined.processes
    return jax.process_count() if jax.distributed.is_initialized() else 1


def neighbours() -> int:
    """How many of them share this machine, as far as that is known."""
    return processes() if os.environ.get(PLACE) else 1


def join(place: Place) -> None:
    """Connects to the other processes. Raises: UserError when they don't come."""
    global _joined
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if os.environ.get(PLACE):
        _end_with_parent()
    _own_stdout()
    try:
        jax.distributed.initialize(place.coordinator, place.processes, place.process, initialization_timeout=60)
    except RuntimeError as error:
        raise UserError(
            f"process {place.process} of {place.processes} found no others at {place.coordinator}",
            help="start all of them within a minute, with the same --processes and --coordinator",
        ) from error
    _joined = place


def spawn(processes: int, command: Sequence[str]) -> int:
    """Runs a command as several processes on this machine, each with its place in the environment.

    What process 0 writes is seen; of the others only what explains a failure. SIGTERM and SIGINT go to all of them
    as SIGTERM. When one fails the others are ended. Returns 0, or the exit code of the first that failed (128 + signal
    for one that a signal killed).
    """
    coordinator = f"127.0.0.1:{free_port()}"
    children: list[subprocess.Popen[bytes]] = []
    errors: list[IO[bytes] | None] = []
    before = {}
    try:
        for i in range(processes):
            silent = tempfile.TemporaryFile() if i else None  # noqa: SIM115 (read at the end)
            errors.append(silent)
            children.append(
                subprocess.Popen(
                    list(command),
                    env={**os.environ, PLACE: f"{i}/{processes}/{coordinator}"},
                    stdin=subprocess.PIPE,  # closed with this process, however that ends
                    stdout=subprocess.DEVNULL if i else None,
                    stderr=silent,
                    start_new_session=True,  # a terminal's Ctrl-C comes through here only
                )
            )

        def forward(_number: int, _frame: object) -> None:
            for child in children:
                with suppress(ProcessLookupError):
                    child.send_signal(signal.SIGTERM)

        before = {s: signal.signal(s, forward) for s in (signal.SIGTERM, signal.SIGINT)}
        return _wait(children, errors)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()
            if child.stdin:
                child.stdin.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: Sequence[subprocess.Popen[bytes]], errors: Sequence[IO[bytes] | None]) -> int:
    first: int | None = None
    deadline = 0.0
    while any(child.poll() is None for child in children):
        failed = next((i for i, c in enumerate(children) if c.poll()), None)
        if failed is not None and first is None:
            first, deadline = failed, time.monotonic() + GRACE
        if first is not None and time.monotonic() > deadline:
            for child in children:
                child.kill()
        time.sleep(0.05)
    codes = [child.returncode for child in children]
    if first is None:
        first = next((i for i, code in enumerate(codes) if code), None)
    if first is None:
        return 0
    told = errors[first]
    if told and not codes[0] > 0:  # process 0 has not said why itself
        told.seek(0)
        sys.stderr.write(told.read().decode(errors="replace"))
    if codes[first] < 0:
        sys.stderr.write(f"process {first} of {len(codes)} was ended by signal {-codes[first]}\n")
    return codes[first] if codes[first] > 0 else 128 - codes[first]


def _place(environment: Mapping[str, str]) -> Place | None:
    text = environment.get(PLACE)
    if not text:
        return None
    process, processes, coordinator = text.split("/", 2)
    return Place(int(process), int(processes), coordinator)


def _chosen(processes: int | None, process: int | None, coordinator: str | None) -> Place | None:
    if processes is not None and processes < 1:
        raise UserError(f"a run can't have {processes} processes", help="--processes 1 or more")
    if process is None and coordinator is None:
        return None
    if processes is None or process is None or coordinator is None:
        raise UserError(
            "a process of a run over several machines needs all of --processes, --process and --coordinator",
            help="--processes 2 alone starts two processes on this machine",
        )
    if not 0 <= process < processes:
        raise UserError(f"there is no process {process} of {processes}", help=f"--process 0 to {processes - 1}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"`{coordinator}` is no address", help="--coordinator HOST:PORT, where process 0 listens")
    return Place(process, processes, coordinator)


def _this_command() -> list[str]:
    """What Python was started with, after the interpreter."""
    return sys.orig_argv[1:]


def _end_with_parent() -> None:
    """SIGTERM for this process when the one that started it is gone: its end of standard input closes."""

    def watch() -> None:
        with suppress(OSError):
            while os.read(0, 1024):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _own_stdout() -> None:
    """Keeps standard output for this program's own words: gloo prints there whom it is connected to."""
    given = sys.__stdout__
    if given is not None and sys.stdout is given:
        given.flush()
        own = os.fdopen(os.dup(1), "w", encoding=given.encoding, buffering=1)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        sys.stdout = own


def free_port() -> int:
    """A port of this machine that nothing listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port
