"""The recurrence alone on ONNX, beside a loop in C."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from planform.backends import onnx
from planform.compiler.elaborate import elaborate
from planform.compiler.passes.pipeline import optimise
from planform.spec import load_text
from tests import benchmarks
from tests.benchmarks.ratios import interval, judged, together
from tests.evidence import row

WIDTH, ROUNDS = 2560, 15
AIMS = {512: 1.9, 2048: 2.3}
"""At most so many times the C loop's time, by entries."""

SPEC = """\
planform: 1
model: recurrence
dims: {d: %d}
graphs:
  g:
    inputs:
      x: float[batch, time, d]
      log_a: float[batch, time, d]
    body: h = linear_recurrence(x, log_a)
"""


def compiled(folder: Path, *flags: str) -> Callable[..., None] | None:
    """`recurrence.c` as a function of the addresses of x, log_a, h and out, and of time and width; None without a
    compiler."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return None
    source, made = Path(benchmarks.__path__[0]) / "recurrence.c", folder / f"recurrence{''.join(flags)}"
    # In two steps: linked with -ffast-math, a library changes how the whole process rounds.
    compile = [compiler, "-O3", "-march=native", "-fPIC", *flags, "-c", str(source), "-o", f"{made}.o"]
    for command in (compile, [compiler, "-shared", f"{made}.o", "-o", f"{made}.so", "-lm"]):
        subprocess.run(command, check=True, capture_output=True)
    function = ctypes.CDLL(f"{made}.so").recurrence
    function.argtypes, function.restype = [ctypes.c_void_p] * 4 + [ctypes.c_long] * 2, None
    return function  # type: ignore[no-any-return]


def in_numpy(x: int, log_a: int, h: int, out: int, time: int, width: int) -> None:
    def array(address: int, *shape: int) -> np.ndarray:
        floats = ctypes.POINTER(ctypes.c_float)
        return np.ctypeslib.as_array(ctypes.cast(address, floats), shape)

    a, b, state, result = array(log_a, time, width), array(x, time, width), array(h, width), array(out, time, width)
    for t in range(time):
        np.multiply(np.exp(a[t]), state, out=state)
        state += b[t]
        result[t] = state


@row(
    "recurrentgemma",
    "recurrence_onnx",
    "the recurrence alone (2,560 wide, with the decays' exponential) in onnxruntime on one thread takes at most "
    "1.9 x the time of a plain C loop over the same arrays for 512 entries, 2.3 x for 2,048; the same numbers",
    0.5,
)
def recurrence_onnx() -> tuple[Any, bool | str]:
    graph = optimise(elaborate(load_text(SPEC % WIDTH, "recurrence.yaml")), "onnx", "step")
    session = onnx.Session(onnx.lower(graph, {}.__getitem__), threads=1, spin=False)
    figure: dict[str, Any] = {}
    verdicts: list[bool | str] = []
    with tempfile.TemporaryDirectory() as scratch:
        plain, fast = compiled(Path(scratch)), compiled(Path(scratch), "-ffast-math")
        for entries, aim in AIMS.items():
            rng = np.random.default_rng(entries)
            x = rng.standard_normal((1, entries, WIDTH)).astype(np.float32)
            log_a = -rng.uniform(0.001, 0.7, x.shape).astype(np.float32)
            out = np.empty_like(x)

            def by_hand(
                loop: Callable[..., None], x: np.ndarray = x, log_a: np.ndarray = log_a, out: np.ndarray = out
            ) -> np.ndarray:
                h = np.zeros(WIDTH, np.float32)
                loop(*(a.ctypes.data for a in (x, log_a, h, out)), x.shape[1], WIDTH)
                return out

            def ours(x: np.ndarray = x, log_a: np.ndarray = log_a) -> np.ndarray:
                found: np.ndarray = session.step({"x": x, "log_a": log_a})["h"]
                return found

            ways = {"onnxruntime": ours, "C": partial(by_hand, plain or in_numpy),
                    "C, vectors of exponentials": partial(by_hand, fast or in_numpy)}  # fmt: skip

            def seconds(run: Callable[[], np.ndarray]) -> float:
                session.reset(1)
                begin = time.process_time()
                run()
                return time.process_time() - begin

            session.reset(1)
            got = ours()
            error = max(onnx.difference(got, by_hand(loop)) for loop in (plain or in_numpy, fast or in_numpy))
            rounds = [{n: seconds(run) for n, run in ways.items()} for _ in range(ROUNDS + 2)][2:]
            speed, low, high = interval([r["C"] / r["onnxruntime"] for r in rounds])
            verdicts += [judged(low, high, 1 / aim), error < 1e-5]
            figure[f"{entries} entries"] = {
                "times the C loop": [round(1 / s, 2) for s in (speed, high, low)],
                "ms": {n: round(1e3 * float(np.median([r[n] for r in rounds])), 2) for n in ways},
                "largest difference": float(f"{error:.1e}"),
            }
    if plain is None:
        figure["no C compiler"] = "beside NumPy instead, which is slower"
        return figure, "undecided"
    return figure, together(verdicts)
