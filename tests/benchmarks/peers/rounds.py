"""Rounds in which every contender has a turn, in a process of its own; ratios are taken within a round.

Turns are short, for what else happens on a machine comes and goes within seconds: a process stays alive between its
turns. The order is another one in each round, so that nobody always comes after the same one.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from planform.backends.onnx.session import physical_cores

from .models import ROOT, Unavailable
from .probes import Bandwidth, Others

Result = dict[str, Any]


def environment(**more: str) -> dict[str, str]:
    """That of a contender's process: one thread a core for every library in it."""
    threads = str(physical_cores())
    path = os.pathsep.join(filter(None, (str(ROOT / ".pkg"), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": threads, "TRANSFORMERS_VERBOSITY": "error",
            "JAX_PLATFORMS": "cpu", **more}  # fmt: skip


class Child:
    """A process that answers each line on its standard input with a line of JSON; the first one it gives unasked.

    Raises: Unavailable, from its making and its answers, where it ends.
    """

    def __init__(self, module: str, *arguments: object, given: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", f"tests.benchmarks.peers.{module}", *map(str, arguments)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=given or environment(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        self._said: deque[str] = deque(maxlen=1)
        self._listener = threading.Thread(target=self._listen, daemon=True)  # so that warnings never fill the pipe
        self._listener.start()
        self.first: Result = self._answer()

    def _listen(self) -> None:
        assert self._process.stderr
        self._said.extend(filter(str.strip, self._process.stderr))

    def _answer(self) -> Result:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):
                found: Result = json.loads(line)
                return found
        code = self._process.wait()
        self._listener.join()
        raise Unavailable(self._said[0].strip()[:300] if self._said else f"ended with {code}")

    def ask(self, line: str) -> Result:
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()


class Turn:
    """Asks a child for the same line again and again; its first turn starts it, and asks for `before` first."""

    def __init__(self, line: str, *arguments: object, before: Sequence[str] = ()) -> None:
        self._line, self._arguments, self._before = line, arguments, before
        self._child: Child | None = None

    def __call__(self) -> Result:
        if self._child is None:
            module, *arguments = self._arguments
            self._child = Child(str(module), *arguments)
            for line in self._before:
                self._child.ask(line)
        return {**self._child.first, **self._child.ask(self._line)}

    def close(self) -> None:
        if self._child:
            self._child.close()


def once(*arguments: object) -> Result:
    """What a contender prints that is asked for nothing more; {"error"} where it fails."""
    try:
        child = Child("child", *arguments)
    except Unavailable as why:
        return {"error": str(why)}
    child.close()
    return child.first


def interleaved(
    runs: Mapping[str, Callable[[], Result]], rounds: int, folder: Path, every: Mapping[str, int] | None = None
) -> dict[str, list[Result]]:
    """Results by contender, one a round, each with the `bandwidth` probed before it, also `in_large_pages`, and
    the share of the processors that `others` took meanwhile. `every`: contenders that run only in each n-th round. One
    that fails stays out; why is said by its only result, {"error"}."""
    probe = Bandwidth(folder, physical_cores())
    found: dict[str, list[Result]] = {key: [] for key in runs}
    order = np.random.default_rng(0)
    for i in range(rounds):
        for key in order.permutation(list(runs)):
            if i % (every or {}).get(key, 1) or any("error" in r for r in found[key]):
                continue
            (small, large), others = probe(), Others()
            result: Result = {"round": i, "bandwidth": small, "in_large_pages": large}
            try:
                result |= runs[key]()
            except Unavailable as why:
                result["error"] = str(why)
            result["others"] = round(others.share(), 3)
            found[key] = [result] if "error" in result else [*found[key], result]
            print(f"# round {i + 1}/{rounds} {key}: {_short(result)}", file=sys.stderr, flush=True)
    return found


def _short(result: Result) -> str:
    shown = {k: round(statistics.median(v), 4) if isinstance(v, list) and v and isinstance(v[0], float) else v
             for k, v in result.items() if k != "round"}  # fmt: skip
    return json.dumps(shown)


def paired(a: Sequence[tuple[int, float]], b: Sequence[tuple[int, float]]) -> list[float]:
    """Ratios a / b of the rounds that both have; each is (round, value)."""
    other = dict(b)
    return [value / other[i] for i, value in a if i in other]
