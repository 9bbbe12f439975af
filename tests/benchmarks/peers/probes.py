"""What the machine gives at the moment: read bandwidth, matrix products, and how busy others keep it."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

SOURCE = Path(__file__).with_name("bandwidth.c")
MIB, REPEATS = 512, 7


class Bandwidth:
    """GB/s of reading memory far beyond the caches, in small pages and in large ones: a small C program where there is
    a compiler, else NumPy, whose arrays are in large ones where the system has them."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.threads = threads
        self.program: Path | None = folder / "bandwidth"
        self._array: np.ndarray | None = None
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            self.program = None
        elif not self.program.exists() or self.program.stat().st_mtime < SOURCE.stat().st_mtime:
            folder.mkdir(parents=True, exist_ok=True)
            command = [compiler, "-O3", "-march=native", "-pthread", str(SOURCE), "-o", str(self.program)]
            if subprocess.run(command, capture_output=True).returncode:
                self.program = None

    def __call__(self) -> tuple[float, float]:
        if self.program is not None:
            command = [str(self.program), str(MIB), str(self.threads), str(REPEATS)]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            small, large = map(float, told.split())
            return small, large
        if self._array is None:
            self._array = np.ones(MIB << 18, np.float32)
        parts = np.array_split(self._array, self.threads)
        found = []
        with ThreadPoolExecutor(self.threads) as pool:
            for _ in range(REPEATS):
                begin = time.perf_counter()
                list(pool.map(np.max, parts))
                found.append(self._array.nbytes / (time.perf_counter() - begin) / 1e9)
        usual = statistics.median(found)
        return usual, usual


PRODUCT = 2048
"""Rows and columns of the probe's matrices."""


def products(library: str, threads: int) -> Callable[[], float]:
    """What measures the GFLOP/s of a matrix product, the best of a few: float32 in `torch` or `onnxruntime`, 8-bit
    integers in `onnxruntime-int8`. In a process of its own: `python -m tests.benchmarks.peers.probes LIBRARY THREADS`,
    which prints {"rate"} for each line on standard input."""
    n = PRODUCT
    x = np.random.default_rng(0).standard_normal((n, n), np.float32)
    run: Callable[[], object]
    if library == "torch":
        import torch

        torch.set_num_threads(threads)
        a, out = torch.from_numpy(x), torch.empty(n, n)
        run = lambda: torch.mm(a, a, out=out)  # noqa: E731
    else:
        import onnx_ir as ir

        from planform.backends.onnx.session import load, options

        small = library.endswith("int8")
        x, w = (np.abs(x * 20).astype(np.uint8), (x * 20).astype(np.int8)) if small else (x, x)
        shape = ir.Shape((n, n))
        weight, given = (
            ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.from_numpy(a.dtype)), const_value=constant)
            for name, a, constant in (("w", w, ir.tensor(w)), ("x", x, None))
        )
        node = ir.node("MatMulInteger" if small else "MatMul", [given, weight])
        result = ir.DataType.INT32 if small else ir.DataType.FLOAT
        node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = "y", shape, ir.TensorType(result)
        graph = ir.Graph([given], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 21}, name="g")
        session = load(ir.Model(graph, ir_version=10), options(threads))
        run = lambda: session.run(None, {"x": x})  # noqa: E731

    def rate() -> float:
        best = np.inf
        for _ in range(6):
            begin = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - begin)
        return 2 * n**3 / best / 1e9

    rate()
    return rate


class Others:
    """The share of the machine's processor time that neither this process nor its children took."""

    def __init__(self) -> None:
        self._before = self._read()

    def _read(self) -> tuple[float, float, float]:
        """(busy, all, ours) in seconds."""
        whole = psutil.cpu_times()
        own = psutil.Process()
        times = [own.cpu_times()]
        for child in own.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                times.append(child.cpu_times())
        ours = sum(t.user + t.system + t.children_user + t.children_system for t in times)
        everything = sum(whole) - whole.guest - whole.guest_nice  # which are in user and nice
        return everything - whole.idle - whole.iowait, everything, ours

    def share(self) -> float:
        """Since this object was made."""
        busy, everything, own = (now - then for now, then in zip(self._read(), self._before))
        return max(0.0, busy - own) / everything if everything else 0.0


def main() -> None:
    rate = products(sys.argv[1], int(sys.argv[2]))
    print("{}", flush=True)
    for _ in sys.stdin:
        print(json.dumps({"rate": rate()}), flush=True)


if __name__ == "__main__":
    main()
