"""Rounds in which every contender runs once, in a process of its own; ratios are taken within a round.

Each round starts with another contender. Results go to a file as they come, so that a run that was stopped goes on
where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from planform.backends.onnx.session import physical_cores

from .models import ROOT
from .probes import Bandwidth, Others

FRESH = 3 * 3600.0
"""Seconds after which what a stopped run left behind isn't gone on with."""

Result = dict[str, Any]


def environment(**more: str) -> dict[str, str]:
    """That of a contender's process: one thread a core for every library in it."""
    threads = str(physical_cores())
    path = os.pathsep.join(filter(None, (str(ROOT / ".pkg"), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": threads, "TRANSFORMERS_VERBOSITY": "error",
            "JAX_PLATFORMS": "cpu", **more}  # fmt: skip


def child(module: str, *arguments: object, **more: str) -> Result:
    """The JSON line that a module of this package prints in a new process; {"error"} where it fails."""
    command = [sys.executable, "-m", f"tests.benchmarks.peers.{module}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment(**more), capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines()
        return {"error": said[-1][:300] if said else f"ended with {done.returncode}"}
    result: Result = json.loads(lines[-1])
    return result


def interleaved(
    name: str,
    runs: dict[str, Callable[[], Result]],
    rounds: int,
    folder: Path,
    every: dict[str, int] | None = None,
) -> dict[str, list[Result]]:
    """Results by contender, one a round, each with the `bandwidth` probed before it and the share of the processors
    that `others` took meanwhile. `every`: contenders that run only in each n-th round. One that fails in its first
    run stays out; why is said by its only result, {"error"}."""
    probe = Bandwidth(folder, physical_cores())
    log = _Log(folder / "rounds" / f"{name}.jsonl", {"name": name, "contenders": sorted(runs), "rounds": rounds})
    found: dict[str, list[Result]] = {key: [] for key in runs}
    for row in log.rows:
        found[row["contender"]].append(row)
    order = list(runs)
    for i in range(rounds):
        for key in order[i % len(order) :] + order[: i % len(order)]:
            if i % (every or {}).get(key, 1) or any("error" in r for r in found[key]):
                continue
            if any(r["round"] == i for r in found[key]):
                continue
            bandwidth, others = probe(), Others()
            result = {"contender": key, "round": i, "bandwidth": bandwidth, **runs[key]()}
            result["others"] = round(others.share(), 3)
            found[key].append(log.add(result))
            print(f"# round {i + 1}/{rounds} {key}: {_short(result)}", file=sys.stderr, flush=True)
    log.close()
    return found


class _Log:
    """Results of one run, in a file until it is over."""

    def __init__(self, path: Path, about: Result) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        head = json.dumps({**about, "code": _fingerprint()}, sort_keys=True)
        self.path, self.rows = path, []
        if path.exists() and time.time() - path.stat().st_mtime < FRESH:
            first, *rest = path.read_text().splitlines() or [""]
            self.rows = [json.loads(line) for line in rest] if first == head else []
        self._file = open(path, "w")  # noqa: SIM115 - open until `close`
        self._file.write("\n".join([head, *map(json.dumps, self.rows)]) + "\n")
        self._file.flush()

    def add(self, row: Result) -> Result:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        return row

    def close(self) -> None:
        """The run is whole: the next one starts anew, and this one stays to be looked at."""
        self._file.close()
        self.path.replace(self.path.with_suffix(".last.jsonl"))


def _fingerprint() -> str:
    """Of the code that measures: rounds of different code are no rounds of one run."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:12]


def _short(result: Result) -> str:
    shown = {k: round(statistics.median(v), 4) if isinstance(v, list) and v and isinstance(v[0], float) else v
             for k, v in result.items() if k not in ("contender", "round", "tokens")}  # fmt: skip
    return json.dumps(shown)


def speed(result: Result, key: str, amount: float = 1.0) -> float:
    """`amount` a second, by the median of the seconds that a result has under a key."""
    return amount / statistics.median(result[key])


def paired(a: Sequence[tuple[int, float]], b: Sequence[tuple[int, float]]) -> list[float]:
    """Ratios a / b of the rounds that both have; each is (round, value)."""
    other = dict(b)
    return [value / other[i] for i, value in a if i in other]
