"""Speed of an exported Gemma-2-like model (222M parameters) in plain onnxruntime, beside the memory's own.

    python -m tests.benchmarks.onnx [--rounds 9] [--folder FOLDER] [--threads 1 --no-spin] [--quantize int4] [--cache]

Prints one JSON line: prefill and decode in tokens/s, the share of the read bandwidth that decoding reaches
(probed in every round, since machines are shared), and the same with the state copied at each step instead of
kept in place. Medians with the range over the rounds. With one thread all times are CPU times, which other
processes disturb less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from planform.backends.onnx import Quantization, Scheme, Session, export, lower
from planform.backends.onnx.session import physical_cores
from planform.compiler.elaborate import elaborate
from planform.compiler.parameters import initial
from planform.runtime.exporting import step_graph
from planform.runtime.quantize.choose import BLOCK
from planform.spec import load

from .sizes import SIZES

SIZE = SIZES["m300"].dims
PROMPT, STEPS, ROOM = 512, 24, 1024


clock: Callable[[], float] = time.perf_counter


def exported(folder: Path, weights_in: str | None = None, cache: bool = False) -> Path:
    """The model in step form, with random weights: rounded to nearest, which is as fast as any other rounding, and with
    8 bit caches under one scale for all channels."""
    graph = elaborate(load("gemma2", "2b", [f"{k}={v}" for k, v in SIZE.items()]), "lm")
    weights = initial(graph.parameters)
    graph, _ = step_graph(graph)
    kept = [s.path for s in lower(graph, weights.__getitem__).states if s.layout != "plain"] if cache else []
    scales = {path: np.full((SIZE["kv_heads"], SIZE["head_dim"]), 4 / 127, np.float32) for path in kept}
    scheme = None if weights_in is None else Scheme(weights_in, 0 if weights_in == "int8" else BLOCK)
    return export(
        graph, weights.__getitem__, folder, max_positions=2048, quantization=Quantization(scheme, cache=scales)
    )


def bandwidth(array: np.ndarray, threads: int) -> float:
    """GB/s of reading memory: the largest entry of an array far beyond the caches."""
    parts = np.array_split(array, 16 * threads)
    with ThreadPoolExecutor(threads) as pool:
        start = clock()
        list(pool.map(np.max, parts))
        return array.nbytes / (clock() - start) / 1e9


def decode(session: Session, tokens: np.ndarray, steps: int = STEPS) -> float:
    """Tokens/s of one stream after a prompt, greedily."""
    session.reset(1, ROOM)
    logits = session.advance(tokens)
    for _ in range(2):
        logits = session.advance(logits.argmax(-1))
    start = clock()
    for _ in range(steps):
        logits = session.advance(logits.argmax(-1))
    return steps / (clock() - start)


def prefill(session: Session, tokens: np.ndarray) -> float:
    """Tokens/s of reading a prompt."""
    session.reset(1, ROOM)
    start = clock()
    session.prefill(tokens)
    return tokens.size / (clock() - start)


def decode_copying(session: Session, tokens: np.ndarray) -> float:
    """`decode` by plain `run` calls, whose states are new arrays at each step."""
    s = session.session
    sizes = {"batch": 1, "capacity": ROOM}
    kinds = {"tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(int8)": np.int8}
    states = {
        i.name: np.zeros([sizes.get(d, d) for d in i.shape], kinds[i.type])
        for i in s.get_inputs()
        if i.name.startswith("past/")
    }
    names = ["logits", *(n.replace("past/", "present/") for n in states)]

    def step(chunk: np.ndarray) -> np.ndarray:
        count = np.array([chunk.shape[1]], np.int32)
        found = s.run(names, {"tokens": chunk.astype(np.int32), "count": count, **states})
        states.update(zip(states, found[1:], strict=True))
        return found[0]

    logits = step(tokens)
    for _ in range(2):
        logits = step(logits.argmax(-1))
    start = clock()
    for _ in range(STEPS):
        logits = step(logits.argmax(-1))
    return STEPS / (clock() - start)


def spread(values: list[float]) -> dict[str, float]:
    return {k: round(f(values), 3) for k, f in (("median", statistics.median), ("low", min), ("high", max))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="keep the model here, and use the one that is there")
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--no-spin", action="store_true", help="threads sleep between operators: for busy machines")
    parser.add_argument("--quantize", choices=("int4", "w8", "int8"), help="weights in fewer bits")
    parser.add_argument("--cache", action="store_true", help="key and value caches in 8 bits")
    args = parser.parse_args()
    if args.threads == 1:
        global clock
        clock = time.process_time
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch) / "model"
        if not (folder / "model.onnx").exists():
            exported(folder, args.quantize, args.cache)
        size = (folder / "model.onnx.data").stat().st_size
        session = Session(folder, threads=args.threads, spin=not args.no_spin)
        array = np.ones(1 << 27, np.float32)
        tokens = np.random.default_rng(0).integers(0, SIZE["vocab"], (1, PROMPT)).astype(np.int32)
        found: dict[str, list[float]] = {}

        def measure(name: str, value: float) -> float:
            found.setdefault(name, []).append(value)
            return value

        rows: list[tuple[str, Callable[[Session, np.ndarray], float]]] = [
            ("prefill_tokens_s", prefill), ("decode_tokens_s", decode), ("decode_copying_tokens_s", decode_copying),
        ]  # fmt: skip
        for _ in range(args.rounds):
            read = measure("read_gb_s", bandwidth(array, args.threads))
            for name, row in rows:
                speed = measure(name, row(session, tokens))
                if name == "decode_tokens_s":
                    measure("decode_share_of_bandwidth", speed * size / 1e9 / read)
        print(json.dumps({"weights_mb": size // 10**6, **{k: spread(v) for k, v in found.items()}}))


if __name__ == "__main__":
    main()
