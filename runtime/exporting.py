"""From a training run to an artefact that runs without us."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from planform.compiler.graphs import FIT, graph_named
from planform.compiler.ir import Graph, Input
from planform.compiler.parameters import count
from planform.compiler.passes.base import Trace
from planform.compiler.passes.known import known
from planform.compiler.passes.last import last_only
from planform.compiler.passes.pipeline import optimise
from planform.compiler.passes.unroll import unroll
from planform.spec import Spec, SpecError

from .artefact import is_artefact
from .companions import FOLDER, companions, generation_ids
from .errors import UserError
from .probe import in_two, probe_inputs, probe_length
from .run import parameters_of_run, read_run, spec_of_run

if TYPE_CHECKING:
    from .quantize import Choice, Entries, Wish

POSITIONS = 8192

Arrays = Mapping[str, np.ndarray]

LONGEST = 512
"""Entries of the fixture's prompt, at most."""

BY_REFERENCE = 200_000_000
"""Parameters up to which the fixture's outputs come from the float64 reference; beyond it would take hours and twice
the memory, and XLA computes them."""


def check_target(folder: str | Path) -> None:
    """Raises: UserError when writing an artefact there could destroy something else."""
    folder = Path(folder)
    if not folder.exists() or is_artefact(folder):
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file", help="give a folder that doesn't exist yet")
    if any(folder.iterdir()):
        raise UserError(
            f"{folder} holds something that isn't an exported model", help="give a folder that doesn't exist yet"
        )


def step_graph(graph: Graph) -> tuple[Graph, str | None]:
    """The graph as it is exported: in step form with the logits of the last entry, or, where it has no step form, for
    whole sequences. And why, in that case."""
    try:
        # The file has its layers written out anyway; before `last_only` it lets the last layer run on one entry.
        return last_only(unroll(optimise(graph, "onnx", "step"))), None
    except SpecError as error:
        return optimise(graph, "onnx", "training"), error.diagnostics[0].message


def export_run(
    run: str | Path,
    folder: str | Path,
    *,
    graph: str | None = None,
    positions: int = POSITIONS,
    step: int | None = None,
    overrides: Sequence[str] = (),
    genai: bool = False,
    wish: Wish | None = None,
    calibrate: Path | None = None,
    fixed: Mapping[str, np.ndarray] = MappingProxyType({}),
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Writes the trained model of a run as ONNX, with its contract, a fixture, its tokenizer and its chat template.

    graph      of the spec, where it has several
    positions  the longest stream that the model is made for
    step       of the checkpoint; the newest without one
    overrides  of the spec, as far as no parameter changes: `window=1024`
    genai      a folder that onnxruntime-genai loads too
    wish       what is quantised, and what that may cost
    calibrate  text to calibrate on and, its end, to measure on, instead of the run's data
    fixed      inputs that are known, which the artefact doesn't take: the coordinates of one resolution
    report     told what is being done, in words
    Returns what there is to say: {"folder", "form", "bytes", "files", "why", "quantization"}.
    Raises: UserError, SpecError.
    """
    run, folder = Path(run), Path(folder)
    spec = spec_of_run(run, overrides)
    check_target(folder)
    if folder.resolve() == run.resolve() or folder.resolve() in run.resolve().parents:
        raise UserError(f"{folder} holds the run itself", help=f"give another folder, {run / 'onnx'} for instance")
    parameters = parameters_of_run(run, step)
    found = told(graph_named(spec, graph), fixed)
    return export_model(
        found, parameters, folder,
        metadata=origin(spec, overrides), positions=positions, beside=companions(run),
        genai=generation_ids(run) if genai else None,
        wish=wish, entries=_entries(run, found, calibrate) if wish else None, report=report,
        typical=_heldout(run, spec, report) if graph == FIT and graph not in spec.graphs else None,
    )  # fmt: skip


def told(graph: Graph, arrays: Arrays, trace: Trace | None = None) -> Graph:
    """The graph with inputs that are known (compiler/passes/known.py). Raises: UserError for arrays that don't fit."""
    names = [v.name for v in graph.of_kind(Input)]
    try:
        return known(graph, arrays, trace) if arrays else graph
    except KeyError as error:
        raise UserError(f"`{graph.name}` has no input {error}", help=f"it has {', '.join(names)}") from error
    except ValueError as error:
        raise UserError(str(error), help="leading dims may be left out where all their entries are alike") from error


def _entries(run: Path, graph: Graph, calibrate: Path | None) -> Entries:
    from .quantize import of_run

    return of_run(run, graph, calibrate)


def _heldout(run: Path, spec: Spec, report: Callable[[str], None]) -> Arrays | None:
    """A batch of data that the run never saw; None where its data are gone. Fitted to anything else, such as noise, a
    field's latents leave the range in which float32 tells them exactly."""
    from .data import Share
    from .evaluate import as_it_ran
    from .opening import open_data

    told = read_run(run)
    chosen = as_it_ran(spec, told)
    try:
        data, _ = open_data(chosen, Share(chosen.batch), run, told.get("files"), None)
    except UserError as error:
        report(f"no data for the fixture: {error.message}")
        return None
    return next(iter(data.heldout(1)))


def export_checkpoint(
    run: str | Path, folder: str | Path, format: str, step: int | None = None, overrides: Sequence[str] = ()
) -> Path:
    """Writes a run, or what was imported, as a checkpoint folder that another library loads: `huggingface` (that is
    transformers) or `deepmind`.

    What the weights came with is kept where the spec says nothing. Raises: UserError, SpecError.
    """
    from .exchange import export_folder

    imported = read_run(run).get("imported")
    spec, parameters = spec_of_run(run, overrides), parameters_of_run(run, step)
    return export_folder(spec, parameters, folder, format, imported=imported, companions=Path(run) / FOLDER)


def origin(spec: Spec, overrides: Sequence[str] = ()) -> dict[str, str]:
    """What an artefact says of where it comes from; `overrides` are those that the run was not trained with."""
    found = {"spec": spec.name or spec.source.name, "hash": hashlib.sha256(spec.source.text.encode()).hexdigest()}
    if spec.size:
        found["size"] = spec.size
    return {**found, "overrides": " ".join(overrides)} if overrides else found


def export_model(
    graph: Graph,
    parameters: Mapping[str, np.ndarray],
    folder: Path,
    *,
    metadata: Mapping[str, str],
    positions: int = POSITIONS,
    beside: Mapping[str, bytes] = MappingProxyType({}),
    fixture: bool = True,
    genai: Mapping[str, Any] | None = None,
    wish: Wish | None = None,
    entries: Entries | None = None,
    typical: Arrays | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The same for a whole-sequence graph and parameters by logical name; `genai` as from `generation_ids`, to make the
    folder for onnxruntime-genai as well; `entries` to calibrate on where something is quantised; `typical`
    inputs to cut the fixture from, which is random without.

    Raises: UserError, SpecError.
    """
    from planform.backends import onnx

    check_target(folder)
    exported, why = step_graph(graph)
    typical = entries.held_out if entries else typical
    given = _fixture(graph, exported, parameters, positions, typical) if fixture else None
    get: Callable[[str], np.ndarray] = lambda name: np.asarray(parameters[name], np.float32)  # noqa: E731

    def write(choice: Choice | None) -> None:
        told = replace(given, limits=choice.limits) if choice and given else given
        onnx.export(
            exported, get, folder, metadata=metadata, max_positions=positions, fixture=told, companions=beside,
            genai=None if genai is None else onnx.Generation.of(genai),
            quantization=choice.quantization if choice else onnx.PLAIN,
        )  # fmt: skip

    choice: Choice | None = None
    try:
        if wish is None:
            write(None)
        else:
            from .quantize import made_up, quantise

            entries = entries or made_up(graph)
            with quantise(
                graph, exported, get, wish, entries, positions=positions, fixture=given, report=report
            ) as choice:
                write(choice)
    except onnx.CannotLower as error:
        raise UserError(f"this model has no ONNX form: {error}") from error
    except OSError as error:
        raise UserError(f"can't write {folder}: {error.strerror or error}") from error
    files = {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.is_file()}
    form = "step" if exported.states else "sequence"
    return {"folder": str(folder), "form": form, "bytes": sum(files.values()), "files": files, "why": why,
            "quantization": dict(choice.told) if choice else None}  # fmt: skip


def _fixture(graph: Graph, exported: Graph, parameters: Arrays, positions: int, typical: Arrays | None = None) -> Any:
    """Two rows; of streams one padded: a prompt in two chunks, and single entries across the end of the longest window.

    typical  inputs to cut it from; else they are random
    """
    from planform.backends import onnx

    singles = 4
    time = max(2, min(probe_length(graph), positions - singles, LONGEST))
    batch = 2
    inputs = probe_inputs(graph, batch, time + singles, 0, documents=False)
    if typical is not None:
        if graph.stream is None:
            inputs = {name: typical[name][:batch] for name in inputs}
        else:
            inputs = {name: _laid(typical[name], array) for name, array in inputs.items()}
    large = count(graph) > BY_REFERENCE
    if not exported.states:
        return _by_xla(graph, parameters, [inputs]) if large else onnx.reference_fixture(exported, parameters, [inputs])
    axes = {v.name: v.type.axis(str(graph.stream)) for v in graph.inputs if v.name in inputs}

    def chunk(start: int, stop: int, count: list[int]) -> dict[str, np.ndarray]:
        def cut(name: str, array: np.ndarray) -> np.ndarray:
            axis = axes[name]
            return array if axis is None else np.take(array, range(start, stop), axis)

        return {**{n: cut(n, a) for n, a in inputs.items()}, "count": np.array(count, np.int32)}

    first, second = in_two(time)
    chunks = [chunk(end - n, end, [n, max(1, n - 5)]) for end, n in ((first, first), (time, second))]
    chunks += [chunk(time + i, time + i + 1, [1, 1]) for i in range(singles)]
    if large:
        return _by_xla(graph, parameters, chunks, time + singles)
    return onnx.reference_fixture(exported, parameters, chunks, time + singles)


def _laid(source: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The entries of `source` in their order, again from the start where they run out, in another's shape."""
    rest = like.shape[2:]
    found: np.ndarray = np.resize(source.reshape(-1, *rest), (like.shape[0] * like.shape[1], *rest)).reshape(like.shape)
    return found.astype(like.dtype)


def _by_xla(graph: Graph, parameters: Arrays, chunks: Sequence[Arrays], capacity: int = 0) -> Any:
    """The fixture of a model that is too large for the reference."""
    from planform.backends import onnx

    from .engines import Xla, complete

    engine = Xla(parameters)
    if capacity:
        stream = engine.stream(last_only(optimise(graph, "xla", "step")), len(chunks[0]["count"]), capacity)
        own = [{k: v for k, v in chunk.items() if k != "count"} for chunk in chunks]
        expected = [stream.step(inputs, chunk["count"]) for inputs, chunk in zip(own, chunks)]
    else:
        chunks = [complete(graph, inputs) for inputs in chunks]
        expected = [engine.whole(graph, inputs) for inputs in chunks]
    return onnx.Fixture(chunks, expected, capacity, of="XLA in float32")
