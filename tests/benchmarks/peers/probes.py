"""What the machine gives at the moment: read bandwidth, matrix products, and how busy others keep it."""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).with_name("bandwidth.c")
MIB, REPEATS = 512, 7


class Bandwidth:
    """GB/s of reading memory far beyond the caches: a small C program where there is a compiler, else NumPy."""

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

    def __call__(self) -> float:
        if self.program is not None:
            command = [str(self.program), str(MIB), str(self.threads), str(REPEATS)]
            return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        if self._array is None:
            self._array = np.ones(MIB << 18, np.float32)
        parts = np.array_split(self._array, self.threads)
        found = []
        with ThreadPoolExecutor(self.threads) as pool:
            for _ in range(REPEATS):
                begin = time.perf_counter()
                list(pool.map(np.max, parts))
                found.append(self._array.nbytes / (time.perf_counter() - begin) / 1e9)
        return statistics.median(found)


PRODUCT = 2048
"""Rows and columns of the probe's matrices."""


def product_rate(library: str, threads: int) -> float:
    """GFLOP/s of a matrix product in a process of its own, the best of a few: float32 in `torch` or `onnxruntime`,
    8-bit integers in `onnxruntime-int8`."""
    command = [sys.executable, "-m", "tests.benchmarks.peers.probes", library, str(threads)]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout))


def _product_rate(library: str, threads: int) -> float:
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
    run()
    best = np.inf
    for _ in range(6):
        begin = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begin)
    return 2 * n**3 / best / 1e9


class Others:
    """The share of the machine's processor time that neither this process nor its finished children took."""

    def __init__(self) -> None:
        self._before = self._read()

    def _read(self) -> tuple[float, float, float]:
        """(busy, all, ours) in seconds."""
        try:
            fields = [int(x) for x in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        except (OSError, ValueError):
            return 0.0, 0.0, 0.0
        tick = os.sysconf("SC_CLK_TCK")
        idle = fields[3] + fields[4]
        own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return (sum(fields) - idle) / tick, sum(fields) / tick, sum(u.ru_utime + u.ru_stime for u in own)

    def share(self) -> float:
        """Since this object was made."""
        busy, everything, own = (now - then for now, then in zip(self._read(), self._before))
        return max(0.0, busy - own) / everything if everything else 0.0


if __name__ == "__main__":
    print(json.dumps(_product_rate(sys.argv[1], int(sys.argv[2]))))
