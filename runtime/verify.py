"""One graph, several executions: do they all mean the same?

The float64 reference says what is right. Every backend runs the same graph after its own passes, in every form: whole
sequences of several documents, a prompt of which rows are padded, and then on in chunks and token by token across
the windows. Where one differs, both are run again with every value watched, and the first that differs is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from planform.backends import reference
from planform.compiler.ir import Graph, Input
from planform.compiler.parameters import layers
from planform.compiler.passes.pipeline import optimise
from planform.compiler.passes.stateful import stateful
from planform.compiler.types import TensorType
from planform.spec import SpecError

from .engines import Artefact, Engine, Reference, engine
from .probe import in_two, longest_window, probe_inputs, probe_length, probe_parameters
from .watch import Watched, Watcher, first_difference, relative

TOLERANCE = 2e-5
"""Largest max |a - b| / max |b| between float32 and the float64 reference."""

ROUNDINGS = 8
"""Where the graph itself allows no such bound (steps down a gradient make roundings larger), how many times as far as
the reference with every result rounded to float32: others add in another order."""

BATCH = 3
WHOLE, PROMPT, TOKENS = "whole sequences", "prompt", "token by token"
LOSS = "training loss"
FORMS = (WHOLE, PROMPT, TOKENS)

Edit = Callable[[Graph], Graph]


@dataclass(frozen=True)
class Agreement:
    """One execution in one form: the largest relative error of its outputs, and the bound that it keeps."""

    backend: str
    form: str
    error: float
    bound: float = TOLERANCE


@dataclass(frozen=True)
class Divergence:
    """Where an execution left the reference.

    path, op, place   of the first value that differs, in the order of the graph: the path with the layer's number,
                      the op that makes it, `file:line:column` of the spec
    error             of that value, relative
    output_error      of the output by which it was noticed
    at                which part of the run: "", or "entries 0 to 61 of row 2"
    refused           why it couldn't run at all, if it couldn't
    """

    backend: str
    form: str
    path: str
    op: str
    place: str | None
    error: float
    output_error: float
    at: str = ""
    refused: str | None = None


@dataclass
class Report:
    """What `verify` found, over `batch` rows of `time` entries (0: no stream). `notes` says what was left out, and
    why."""

    tolerance: float
    time: int
    batch: int
    window: int
    agreements: list[Agreement] = field(default_factory=list)
    divergences: list[Divergence] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not self.divergences and bool(self.agreements)


def verify(
    graph: Graph,
    parameters: Mapping[str, np.ndarray] | None = None,
    *,
    backends: Sequence[str] = ("xla", "onnx"),
    forms: Sequence[str] = FORMS,
    losses: Sequence[Graph] = (),
    artefact: str | Path | None = None,
    edits: Mapping[str, Edit] | None = None,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    report: Callable[[Agreement | Divergence], None] = lambda _: None,
) -> Report:
    """Runs a whole-sequence graph by the reference and by every backend, in every form, and compares outputs.

    parameters  by logical name; None for random ones under which every cap bends
    losses      of a training program over this graph: run by `xla`, which trains
    artefact    a folder with an exported model of this graph in step form, run as one more backend `artefact`
    edits       by backend: what to do to the graph that this backend is given (to see that it is noticed)
    report      told of every result as it comes

    Inputs are longer than two of the graph's longest windows. A backend is not asked for further forms once it has
    differed.
    """
    weights = dict(parameters) if parameters is not None else probe_parameters(graph, seed)
    time = probe_length(graph)
    result = Report(tolerance, time if graph.stream else 0, BATCH, longest_window(graph))

    def found(one: Agreement | Divergence) -> bool:
        (result.agreements if isinstance(one, Agreement) else result.divergences).append(one)  # type: ignore[arg-type]
        report(one)
        return isinstance(one, Agreement)

    names = [*backends, *(["artefact"] if artefact else [])]
    running: dict[str, Engine] = {}
    for name in names:
        running[name] = Artefact(graph, weights, Path(artefact)) if name == "artefact" else engine(name, weights)  # type: ignore[arg-type]
    edited = {name: (edits or {}).get(name, lambda g: g)(graph) for name in names}
    if WHOLE in forms:
        inputs = probe_inputs(graph, BATCH, time, seed, documents=True)
        truth = Expected(graph, weights, inputs)
        for name in [n for n in names if n != "artefact"]:
            mine = optimise(edited[name], name, "training")  # type: ignore[arg-type]
            if not found(_whole(running[name], WHOLE, mine, truth, tolerance)):
                del running[name]
    for loss in losses:
        if "xla" in running and not found(_loss(loss, weights, (edits or {}).get("xla"), time, seed, tolerance)):
            del running["xla"]
    if not {PROMPT, TOKENS} & set(forms):
        return result
    try:
        step = stateful(graph)
    except SpecError as e:
        result.notes.append(e.diagnostics[0].message)
        return result
    inputs = probe_inputs(graph, BATCH, time, seed, documents=False)
    whole = reference.run(graph, weights, inputs)
    for form in (PROMPT, TOKENS):
        if form not in forms:
            continue
        plan = Plan.prompt(time, BATCH) if form == PROMPT else Plan.tokens(time, result.window, BATCH)
        test = Streaming(graph, step, weights, inputs, whole, plan, form, tolerance)
        # The step form itself is held against the whole sequence first: backends are compared with it below.
        alone = test.compare(Reference(weights), step)
        if isinstance(alone, Divergence):
            found(alone)
            return result
        for name in list(running):
            try:
                mine = optimise(edited[name], "onnx" if name == "artefact" else name, "step")  # type: ignore[arg-type]
            except SpecError as e:
                one = Divergence(name, form, graph.name, "", None, float("inf"), float("inf"), refused=str(e))
                found(one)
                del running[name]
                continue
            if not found(test.compare(running[name], mine)):
                del running[name]
    return result


# -- whole sequences ---------------------------------------------------------------------------------------------


def _loss(
    loss: Graph, weights: Mapping[str, np.ndarray], edit: Edit | None, time: int, seed: int, tolerance: float
) -> Agreement | Divergence:
    """A training loss after the passes that training uses, on rows of several documents."""
    others = {p for v in loss.weights for p in layers(v.path)} - set(weights)
    complete = {**(probe_parameters(loss, seed) if others else {}), **weights}
    truth = Expected(loss, complete, probe_inputs(loss, BATCH, time, seed, documents=True))
    mine = optimise(edit(loss) if edit else loss, "xla", "training")
    return _whole(engine("xla", complete), LOSS, mine, truth, tolerance)


class Expected:
    """What a graph should give on some inputs, by the float64 reference."""

    def __init__(self, graph: Graph, weights: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray]) -> None:
        self.graph, self.weights, self.inputs = graph, weights, inputs
        self.watcher = Watcher(graph)
        self.outputs = reference.run(graph, weights, inputs, watch=self.watcher)

    def error(self, got: Mapping[str, np.ndarray]) -> tuple[str, float]:
        """The output that is furthest off, and how far."""
        errors = {k: output_error(got.get(k), want) for k, want in self.outputs.items()}
        worst = max(errors, key=lambda k: (not np.isfinite(errors[k]), errors[k]))
        return worst, errors[worst]

    @cached_property
    def rounding(self) -> float:
        """What the outputs are off where every result is rounded to float32."""
        return self.error(reference.run(self.graph, self.weights, self.inputs, rounded=True))[1]

    def bound(self, error: float, tolerance: float) -> float:
        """The bound for an error: the tolerance, or what float32 allows where that is more and is needed."""
        return tolerance if error <= tolerance else max(tolerance, ROUNDINGS * self.rounding)


def _whole(run: Engine, form: str, mine: Graph, truth: Expected, tolerance: float) -> Agreement | Divergence:
    worst, error = truth.error(run.whole(mine, truth.inputs))
    bound = truth.bound(error, tolerance)
    if error <= bound:
        return Agreement(run.name, form, error, bound)
    values = run.watch_whole(mine, truth.inputs)
    differing = first_difference(truth.watcher.found, values, tolerance, lambda w: ...)
    return _divergence(run.name, form, truth.graph, worst, next(differing, None), error, "")


def output_error(got: np.ndarray | None, want: np.ndarray) -> float:
    return relative(got, want) if got is not None and got.shape == want.shape else float("inf")


def _divergence(
    backend: str,
    form: str,
    graph: Graph,
    output: str,
    first: tuple[Watched, float] | None,
    output_error: float,
    at: str,
) -> Divergence:
    if first is None:
        # No value that both have differs: what is left is the output itself.
        v = graph.outputs[output]
        path = v.origin.path or output
        op = next((n.op.name for n in graph.walk() if v in n.outputs), "")
        return Divergence(backend, form, path, op, v.origin.place, output_error, output_error, at)
    w, error = first
    return Divergence(backend, form, w.key.logical, w.op, w.key.place, error, output_error, at)


# -- streams -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Chunks of a batch of streams: for each its width and how many entries of each row are valid, the rest of a
    row being padding."""

    chunks: tuple[tuple[int, tuple[int, ...]], ...]

    @staticmethod
    def prompt(time: int, batch: int) -> Plan:
        """In two chunks, in each every row a bit shorter than the one before."""
        return Plan(tuple((n, tuple(max(1, n - 3 * b) for b in range(batch))) for n in in_two(time)))

    @staticmethod
    def tokens(time: int, window: int, batch: int) -> Plan:
        """A short prompt, a second chunk, both padded, and then token by token to the end of the first row: each
        row crosses the window at another step."""
        first = max(4, (window or time) // 3)
        start = tuple(max(1, first - b) for b in range(batch))
        more = tuple(max(1, first // 2 - b) for b in range(batch))
        rest = time - start[0] - more[0]
        return Plan(((first, start), (first, more), *([(1, (1,) * batch)] * rest)))


class Streaming:
    """One form of streaming: the chunks of a plan against the reference's whole sequence."""

    def __init__(
        self,
        graph: Graph,
        step: Graph,
        weights: Mapping[str, np.ndarray],
        inputs: Mapping[str, np.ndarray],
        whole: Mapping[str, np.ndarray],
        plan: Plan,
        form: str,
        tolerance: float,
    ) -> None:
        self.graph, self.step, self.weights, self.inputs = graph, step, weights, inputs
        self.whole, self.plan, self.form, self.tolerance = whole, plan, form, tolerance
        self.types = {v.name: v.type for v in graph.of_kind(Input) if v.name in inputs}
        self.batch = len(plan.chunks[0][1])
        lengths = np.cumsum([counts for _, counts in plan.chunks], 0)
        before = [0, *lengths[:-1].max(-1)]
        self.capacity = int(max(b + width for b, (width, _) in zip(before, plan.chunks)))  # padding needs room as well

    def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
        """(entries seen before, entries valid now, inputs) of every chunk."""
        length = np.zeros(self.batch, np.int64)
        for width, counts in self.plan.chunks:
            count = np.array(counts, np.int32)
            given = {}
            for name, array in self.inputs.items():
                axis = self.types[name].axis(str(self.graph.stream))
                given[name] = array if axis is None else _cut(array, axis, length, count, width)
            yield length.copy(), count, given
            length += count

    def compare(self, run: Engine, mine: Graph) -> Agreement | Divergence:
        largest = 0.0
        for chunk, row, output, error in self.errors(run, mine):
            if not error <= self.tolerance:
                return self.locate(run, mine, chunk, row, output, error)
            largest = max(largest, error)
        return Agreement(run.name, self.form, largest, self.tolerance)

    def errors(self, run: Engine, mine: Graph) -> Iterator[tuple[int, int, str, float]]:
        """(chunk, row, output, its largest relative error), for the worst row of each output of each chunk."""
        stream = run.stream(mine, self.batch, self.capacity)
        scale = {k: float(np.abs(v).max()) or 1.0 for k, v in self.whole.items()}
        for i, (length, count, given) in enumerate(self.chunks()):
            got = stream.step(given, count)
            for name, v in self.graph.outputs.items():
                found = self.chunk_error(v.type, got.get(name), self.whole[name], length, count)
                row = int(np.argmax(found))
                yield i, row, name, float(found[row]) / scale[name]

    def chunk_error(
        self, t: TensorType, got: np.ndarray | None, want: np.ndarray, length: np.ndarray, count: np.ndarray
    ) -> np.ndarray:
        """The largest absolute error among each row's valid entries; an output of the last entries only has those."""
        axis = t.axis(str(self.graph.stream))
        found = np.full(self.batch, np.inf)
        if got is None or axis != 1:
            return found
        for b, (start, n) in enumerate(zip(length, count)):
            last_only = got.shape[1] == 1
            theirs = got[b, :1] if last_only else got[b, :n]
            mine = want[b, start + n - 1 : start + n] if last_only else want[b, start : start + n]
            if theirs.shape == mine.shape and np.isfinite(theirs).all():
                found[b] = np.abs(theirs - mine).max(initial=0.0)
        return found

    def locate(self, run: Engine, mine: Graph, chunk: int, row: int, output: str, error: float) -> Divergence:
        """Both run again, up to the chunk where an output differed, and there with every value watched."""
        suspect = run.stream(mine, self.batch, self.capacity)
        truth = Reference(self.weights).stream(self.step, self.batch, self.capacity)
        *earlier, (length, count, given) = islice(self.chunks(), chunk + 1)
        for _, valid, inputs in earlier:
            suspect.step(inputs, valid)
            truth.step(inputs, valid)
        width = self.plan.chunks[chunk][0]
        itself = run.name == "reference"
        expected = self.expected(given, length, count) if itself else truth.watched(given, count)
        got = suspect.watch(given, count)
        expected = [self.as_computed(w, got.get(w.key), count) for w in expected]
        first = next(first_difference(expected, got, self.tolerance, self.valid(width, count)), None)
        last = length[row] + count[row] - 1
        at = f"entries {length[row]} to {last} of row {row}" if width > 1 else f"entry {last} of row {row}"
        name = "reference in step form" if itself else run.name
        return _divergence(name, self.form, self.graph, output, first, error, at)

    def expected(self, given: Mapping[str, Any], length: np.ndarray, count: np.ndarray) -> list[Watched]:
        """The values that the step form should have: cut from those of the whole sequence."""
        watcher = Watcher(self.graph)
        reference.run(self.graph, self.weights, self.inputs, watch=watcher)
        found = []
        width = int(next(iter(given.values())).shape[1])
        for w in watcher.found:
            axis = w.value.type.axis(str(self.graph.stream))
            if axis is not None:
                cut = _cut(w.array, axis, length, count, width)
                found.append(Watched(w.key, w.op, w.value, cut))
        return found

    def as_computed(self, w: Watched, got: np.ndarray | None, count: np.ndarray) -> Watched:
        """The value cut down to the last valid entry of each row, where a model computes it for that one only."""
        axis = w.value.type.axis(str(self.graph.stream))
        if got is None or axis != 1 or w.array.shape[1] == 1 or got.size * w.array.shape[1] != w.array.size:
            return w
        return replace(w, array=w.array[np.arange(len(count)), count - 1][:, None])

    def valid(self, width: int, count: np.ndarray) -> Callable[[Watched], Any]:
        """Chooses the entries that aren't padding; values without the stream's axis count whole."""

        def choose(w: Watched) -> Any:
            axis = w.value.type.axis(str(self.graph.stream))
            if axis != 1 or w.array.shape[1] != width:
                return ...
            return np.arange(width) < count[:, None]

        return choose


def _cut(array: np.ndarray, axis: int, start: np.ndarray, count: np.ndarray, width: int) -> np.ndarray:
    """From each row of `array` [batch, ..] `count` entries along `axis` from `start` on, zeros behind them."""
    out = np.zeros((*array.shape[:axis], width, *array.shape[axis + 1 :]), array.dtype)
    for b, (s, n) in enumerate(zip(start, count)):
        inner = (slice(None),) * (axis - 1)
        out[b][(*inner, slice(0, n))] = array[b][(*inner, slice(s, s + n))]
    return out


__all__ = ["FORMS", "Agreement", "Divergence", "Plan", "Report", "verify"]
