"""What a token costs after 1,024, 8,192 and 65,536 others: a recurrent model's state and work stay what they are."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from planform.backends import onnx
from planform.backends.onnx.session import load as load_session
from planform.backends.onnx.session import options
from planform.compiler.elaborate import elaborate
from planform.compiler.parameters import initial
from planform.runtime.exporting import step_graph
from planform.spec import load
from tests.benchmarks.ratios import interval
from tests.benchmarks.sizes import SIZES, Size
from tests.evidence import row

OUT = Path(__file__).parents[3] / "build" / "evidence" / "constant_state"
CONTEXTS = (1024, 8192, 65536)
STEPS, ROUNDS = 16, 9
ROOM = STEPS + 8
MODELS = [SIZES["rg-m300"], SIZES["m300"]]
"""Of the same vocabulary, width, layers, heads and window."""

States = dict[str, np.ndarray]


class Stream:
    """One stream of a model with int8 weights that is put behind any number of tokens."""

    def __init__(self, size: Size, folder: Path) -> None:
        self.size, self.name, self.folder = size, size.spec, folder / size.spec
        graph = elaborate(load(size.spec, "2b", [f"{k}={v}" for k, v in size.dims.items()]), "lm")
        weights = initial(graph.parameters)
        self.parameters = sum(a.size for a in weights.values())
        step, _ = step_graph(graph)
        onnx.export(
            step, weights.__getitem__, self.folder, max_positions=CONTEXTS[-1] + ROOM,
            quantization=onnx.Quantization(onnx.Scheme("int8", 0)),
        )  # fmt: skip
        self.session = onnx.Session(self.folder)
        self.held: dict[int, States] = {}
        self.filled = "by reading as many tokens"

    def read(self) -> None:
        """Tokens up to each context; the states there are kept."""
        rng = np.random.default_rng(0)
        self.session.reset(1)
        token = {"tokens": np.zeros((1, 1), np.int32)}
        for before, context in zip((0, *CONTEXTS), CONTEXTS):
            self.session.prefill(rng.integers(4, self.size.vocab, (1, context - before)).astype(np.int32))
            self.held[context] = {n: a for n, a in self.session.feeds(token).items() if n.startswith("past/")}

    def make_up(self) -> None:
        """Caches of random numbers instead, made when the stream is put there: reading would take an hour."""
        self.filled = "with random numbers"
        self.held = {context: {} for context in CONTEXTS}

    def put(self, session: Any, context: int) -> None:
        """The stream of a session behind so many tokens, with room for the steps that are measured."""
        session.reset(1, context + ROOM)
        held = self.held[context] or _random(session)
        for name, array in held.items():
            path = name.removeprefix("past/")
            if path in session._kept:
                session._kept[path][...] = array
            else:
                session._moving[path][0].update_inplace(np.ascontiguousarray(array))
        session._moving["length"][0].update_inplace(np.array([context], np.int32))
        session.length[:] = context

    def seconds(self, context: int) -> float:
        """Of a token, the median of some steps."""
        self.put(self.session, context)
        token, found = np.zeros((1, 1), np.int32), []
        for _ in range(STEPS):
            begin = time.perf_counter()
            logits = self.session.advance(token)
            found.append(time.perf_counter() - begin)
            token = logits[:, -1].argmax(-1)[:, None]
        return statistics.median(found)

    def executed(self) -> dict[int, Counter[str]]:
        """What the runtime executes for one token after each context: its kernels with the shapes that they take and
        give, bodies of Scan and If included."""
        settings = options()
        settings.enable_profiling = True
        settings.profile_file_prefix = str(self.folder / "profile")
        session = onnx.Session(load_session(self.folder, settings))
        for context in self.held:
            self.put(session, context)
            session.advance(np.zeros((1, 1), np.int32))
        events = json.loads(Path(session.session.end_profiling()).read_text())
        runs = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run")
        found: dict[int, Counter[str]] = {}
        for context, (begin, end) in zip(self.held, runs, strict=True):
            kernels = (e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time"))
            found[context] = Counter(
                json.dumps([e["args"]["op_name"], e["args"]["input_type_shape"], e["args"]["output_type_shape"]])
                for e in kernels if begin <= e["ts"] <= end
            )  # fmt: skip
        return found


def _random(session: Any) -> Mapping[str, np.ndarray]:
    numbers = np.random.default_rng(0).standard_normal(1 << 20, np.float32)
    return {path: np.resize(numbers, a.shape) for path, a in session.caches().items()}


@row(
    "recurrentgemma",
    "constant_state",
    "bytes of state and the kernels executed for a token, with all shapes, exactly equal after 1,024, 8,192 and 65,536 "
    "tokens of RecurrentGemma (int8 weights, float32 state); time a token with its interval, beside a Gemma 2 of the "
    "same widths and layers, for which both grow",
    6,
)
def constant_state() -> tuple[Any, bool]:
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        streams = [Stream(size, Path(scratch)) for size in MODELS]
        streams[0].read()
        streams[1].make_up()
        times: dict[tuple[str, int], list[float]] = {}
        for i in range(ROUNDS):
            cases = [(s, c) for s in streams for c in CONTEXTS]
            for stream, context in cases[i % len(cases) :] + cases[: i % len(cases)]:
                times.setdefault((stream.name, context), []).append(1e3 * stream.seconds(context))
        figure: dict[str, Any] = {}
        same: dict[str, tuple[bool, bool]] = {}
        for stream in streams:
            executed, table = stream.executed(), {}
            for context in CONTEXTS:
                stream.put(stream.session, context)
                table[f"{context:,}"] = {
                    "state, bytes": stream.session.state_bytes,
                    "kernels": sum(executed[context].values()),
                    "ms a token": [round(t, 2) for t in interval(times[stream.name, context])],
                }
            first = CONTEXTS[0]
            ratio = [b / a for a, b in zip(times[stream.name, first], times[stream.name, CONTEXTS[-1]])]
            same[stream.name] = (
                len({t["state, bytes"] for t in table.values()}) == 1,
                all(e == executed[first] for e in executed.values()),
            )
            figure[stream.name] = {
                "parameters": stream.parameters, "after": table, "filled": stream.filled,
                "the same state, the same work": same[stream.name],
                f"time after {CONTEXTS[-1]:,} over {first:,}": [round(t, 2) for t in interval(ratio)],
            }  # fmt: skip
    plot(figure, OUT / "constant_state.png")
    figure["plot"] = str((OUT / "constant_state.png").relative_to(Path.cwd()))
    return figure, same["recurrentgemma"] == (True, True) and same["gemma2"] == (False, False)


def plot(figure: Any, path: Path) -> None:
    """Bytes of state and time a token by context, the two models together."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawing, (state, speed) = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for name, colour in (("gemma2", "#8a8f98"), ("recurrentgemma", "#1f6feb")):
        after = figure[name]["after"].values()
        state.plot(CONTEXTS, [t["state, bytes"] / 1e6 for t in after], color=colour, marker="o", label=name)
        middle, low, high = zip(*(t["ms a token"] for t in after))
        speed.plot(CONTEXTS, middle, color=colour, marker="o", label=name)
        speed.fill_between(CONTEXTS, low, high, color=colour, alpha=0.2, lw=0)
    for axes, title, unit in ((state, "What a stream keeps", "MB of state"), (speed, "What a token takes", "ms")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(CONTEXTS, [f"{c:,}" for c in CONTEXTS])
        axes.set_xlabel("tokens of context")
        axes.set_ylabel(unit)
        axes.set_title(title, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    state.legend(frameon=False)
    drawing.savefig(path, dpi=150)
    pyplot.close(drawing)
