"""Training beside the peers: the same step by hand in JAX, by transformers on torch, by the model's own authors.

A process a trainer, all of JAX's with the same allocator, devices and flags. They take turns, step by step, in another
order each round, so that nobody always comes after the same one; each stays alive between its turns. What the step's
matrix products alone take at XLA's own rate is measured in every round too.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from planform.backends.onnx.session import physical_cores
from planform.runtime.environment import cpu_environment

from ..ratios import interval, judged, together
from ..sizes import SIZES
from . import rounds
from .compare import Figure, Options, Outcome, rounded, spread
from .models import Unavailable, need
from .rounds import Child

BATCH, TIME = 4, 256

MODULES = {"torch": "transformers", "deepmind": "recurrentgemma"}
"""What must be installed for a trainer."""
TITLES = {"hand": "hand-written JAX", "torch": "torch", "deepmind": "recurrentgemma's JAX"}


@dataclass(frozen=True)
class Training:
    """The row of a family: its size, and by how much a step of ours is faster than each of these groups' fastest.

    share  of the rate at which its matrix products alone would run
    first  seconds within which the first step is made, tracing and compiling included
    """

    size: str
    aims: tuple[tuple[tuple[str, ...], float], ...]
    beside: tuple[str, ...] = ()
    share: float | None = None
    first: float | None = None

    @property
    def peers(self) -> tuple[str, ...]:
        return (*(name for names, _ in self.aims for name in names), *self.beside)


TRAININGS = {
    "gemma2": Training("t40", ((("hand",), 1.2),), beside=("torch",), share=0.8),
    "recurrentgemma": Training("rg-t40", ((("deepmind", "torch"), 1.2), (("hand",), 1.0)), first=20.0),
}


def trainer(name: str, size: str) -> Child:
    """A child that makes a step at each turn. Raises: Unavailable when it can't be started."""
    if name in MODULES:
        need(MODULES[name])
    given = rounds.environment()
    given = given if name == "torch" else given | cpu_environment(1, given)
    asked = ("--size", size, "--batch", BATCH, "--time", TIME, "--threads", physical_cores())
    return Child("train_child", name, *asked, given=given)


def train_step(options: Options) -> Outcome:
    """Seconds of a step in float32, beside the peers' and the products' alone."""
    row = TRAININGS[options.spec]
    size = options.size or row.size
    trainers: dict[str, Child] = {}
    missing: dict[str, str] = {}
    try:
        for name in ("ours", *row.peers, "products"):
            try:
                trainers[name] = trainer(name, size)
            except Unavailable as why:
                missing[name] = str(why)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in trainers}
        order = np.random.default_rng(0)
        steps = 2 * options.rounds  # they are short, and the products' share wants a narrow interval
        for i in range(steps):
            for name in order.permutation(list(trainers)):
                turn = trainers[name].ask("step")
                found[name].append(turn)
                print(f"# round {i + 1}/{steps} {name}: {turn}", file=sys.stderr, flush=True)
    finally:
        for t in trainers.values():
            t.close()
    seconds = {name: [turn["seconds"] for turn in turns] for name, turns in found.items()}
    if not {"ours", "hand", "products"} <= set(seconds):
        return {"missing": missing}, False
    ratios = {
        name: interval([a / b for a, b in zip(seconds[name], seconds["ours"])]) for name in seconds if name != "ours"
    }
    first = {name: t.first["first_s"] for name, t in trainers.items() if name != "products"}
    figure: Figure = {
        "model": size, "batch": [BATCH, TIME], "seconds": {n: spread(s) for n, s in seconds.items()},
        **{f"speed over {TITLES[n]}": rounded(ratios[n]) for n in row.peers if n in ratios},
        "share of the products' own rate": rounded(ratios["products"]),
        "seconds to the first step": first,
        "peak memory, MB": {n: turns[-1]["memory"] // 10**6 for n, turns in found.items() if n != "products"},
        "last loss": {n: round(turns[-1]["loss"], 3) for n, turns in found.items() if n != "products"},
    }  # fmt: skip
    verdicts: list[bool | str] = []
    for names, aim in row.aims:
        here = [n for n in names if n in ratios]
        if here:
            rival = min(here, key=lambda n: statistics.median(seconds[n]))
            verdicts.append(judged(*ratios[rival][1:], aim=aim))
        if len(here) < len(names):
            verdicts.append("undecided")
    if row.share:
        verdicts.append(judged(*ratios["products"][1:], aim=row.share))
    if row.first:
        verdicts.append(first["ours"] <= row.first)
    if missing:
        figure["missing"] = missing
    return figure, together(verdicts)


def train_memory(options: Options) -> Outcome:
    """Peak memory of the process after two steps, and the bytes of temporaries that XLA says its program has: for the
    usual model, and for one with Gemma's vocabulary, whose logits are the largest thing there is."""
    logits = BATCH * TIME * SIZES["wide"].vocab * 4
    figure: Figure = {}
    verdicts: list[bool | str] = []
    for size in ("t40", "wide"):
        memory, temporary = {}, {}
        for name in ("ours", "hand", "torch"):
            try:
                child = trainer(name, size)
                memory[name] = child.ask("step")["memory"] // 10**6
            except Unavailable as why:
                figure.setdefault("missing", {})[name] = str(why)
                continue
            if "temp_mb" in child.first:
                temporary[name] = child.first["temp_mb"]
            child.close()
        figure[f"{size}: peak memory, MB"] = memory
        figure[f"{size}: temporaries of the program, MiB"] = temporary
        if "ours" not in memory:
            return figure, False
        verdicts += [memory["ours"] < value for name, value in memory.items() if name != "ours"]
        verdicts.append(temporary["ours"] < temporary.get("hand", 0))
    figure["wide: logits as a whole, MiB"] = logits >> 20
    verdicts.append(temporary["ours"] < logits >> 20)
    if "missing" in figure:
        verdicts.append("undecided")
    return figure, together(verdicts)
