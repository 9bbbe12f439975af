"""Does `verify` bite? A graph is broken in one fact at a time, and every time it must be noticed.

The inputs and weights are those that `verify` uses (probe.py): longer than two windows, every cap in its bend. Each
wrong version (compiler/mistakes.py) is compiled and run by a backend and compared with the right graph's reference;
those of streaming state are fed chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from planform.backends import reference
from planform.compiler.ir import Graph
from planform.compiler.mistakes import Mistake, forgotten_states, mistakes
from planform.compiler.passes.pipeline import optimise
from planform.compiler.passes.stateful import stateful
from planform.spec import SpecError

from .engines import Engine, engine
from .probe import longest_window, probe_inputs, probe_length, probe_parameters
from .verify import BATCH, TOKENS, TOLERANCE, WHOLE, Expected, Plan, Streaming


@dataclass(frozen=True)
class Trial:
    """One wrong version on one backend.

    error     of the outputs, relative to their largest value
    refused   why it didn't run at all, if it didn't: noticed as well
    """

    mistake: str
    path: str
    backend: str
    form: str
    error: float
    caught: bool
    refused: str | None = None


def mutate(
    graph: Graph,
    *,
    backends: Sequence[str] = ("xla", "onnx"),
    seed: int = 0,
    tolerance: float = TOLERANCE,
    report: Callable[[Trial], None] = lambda _: None,
) -> list[Trial]:
    """Every wrong version of a whole-sequence graph, and of its step form the states that aren't carried on, on every
    backend. `report` is told of each trial as it comes.

    Raises: ValueError where the right graph itself is further off than the tolerance, or than float32 allows.
    """
    weights = probe_parameters(graph, seed)
    time = probe_length(graph)
    found: list[Trial] = []

    def tried(mistake: Mistake, run: Engine, form: str, error: Callable[[], float]) -> None:
        try:
            off, refused = error(), None
        except Exception as e:  # a wrong graph may be refused anywhere on its way, in the words of whoever does
            off, refused = float("inf"), str(e).split("\n")[0]
        trial = Trial(mistake.name, mistake.path, run.name, form, off, not off <= tolerance, refused)
        found.append(trial)
        report(trial)

    running = [engine(name, weights) for name in backends]
    inputs = probe_inputs(graph, BATCH, time, seed, documents=True)
    truth = Expected(graph, weights, inputs)

    def whole(run: Engine, wrong: Graph) -> float:
        return _size(truth.error(run.whole(optimise(wrong, run.name, "training"), inputs))[1])  # type: ignore[arg-type]

    right = {run: whole(run, graph) for run in running}
    tolerance = max(truth.bound(error, tolerance) for error in right.values())
    for run, error in right.items():
        if not error <= tolerance:
            raise ValueError(f"{run.name} is off by {error:.1e} before anything is broken")
    for mistake in mistakes(graph):
        for run in running:
            tried(mistake, run, WHOLE, lambda run=run, m=mistake: whole(run, m.edit(graph)))  # type: ignore[misc]

    try:
        step = stateful(graph)
    except SpecError:
        return found
    inputs = probe_inputs(graph, BATCH, time, seed, documents=False)
    plan = Plan.tokens(time, longest_window(graph), BATCH)
    whole_truth = reference.run(graph, weights, inputs)
    test = Streaming(graph, step, weights, inputs, whole_truth, plan, TOKENS, tolerance)

    def streamed(run: Engine, wrong: Graph) -> float:
        return next((e for *_, e in test.errors(run, wrong) if not _size(e) <= tolerance), 0.0)

    for run in running:
        own = optimise(graph, run.name, "step")  # type: ignore[arg-type]
        for mistake in forgotten_states(own):
            tried(mistake, run, TOKENS, lambda run=run, m=mistake, own=own: streamed(run, m.edit(own)))  # type: ignore[misc]
    return found


def _size(error: float) -> float:
    """A result that is no number is as wrong as can be."""
    return float("inf") if np.isnan(error) else error


__all__ = ["Trial", "mutate"]
