"""The export contract: everything that somebody without this package needs to run and check a model.

`contract.json` names inputs, outputs and states with shapes, dtypes and first values, `fixture.npz` holds
inputs with the outputs that the reference gives for them, `README.txt` says in words how to use them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from planform.backends.reference import interpreter as reference
from planform.compiler.ir import Graph, Input
from planform.compiler.types import TensorType

from .divergence import METRICS, Divergence
from .emitter import StateLayout
from .lowering import IR_VERSION, Lowered
from .readme import GENAI_README, QUANTISED_README, SEQUENCE_README, STEP_README
from .session import IN_PLACE, NAMES, Session, load, run

FORMAT = 1
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
CONTRACT, FIXTURE, README = "contract.json", "fixture.npz", "README.txt"
TOLERANCE = 2e-5
"""Largest |got - expected| / max |expected| for float32 arithmetic against float64."""

_LAYOUTS = {
    "plain": "replaced by its successor as a whole",
    "linear": "row p of dim 2 holds position p; dim 2 is the room for a stream and may be any size that suffices",
    "window": "rows of dim 2 hold the newest positions, oldest first, from row 0 on; the model moves them itself",
}


@dataclass(frozen=True)
class Fixture:
    """Chunks fed one after the other to a batch of new streams (one chunk, for a whole-sequence model).

    inputs, expected: for each chunk, by name; entries of expected outputs beyond a row's `count` don't count.
    capacity: room of the streams. of: what gave the expected values, e.g. `the float64 reference`.
    limits: for a quantised model, whose outputs are not expected to be equal: by output (metric, largest value), over
    all chunks together; see METRICS.
    """

    inputs: Sequence[Mapping[str, np.ndarray]]
    expected: Sequence[Mapping[str, np.ndarray]]
    capacity: int = 0
    of: str = "the float64 reference"
    limits: Mapping[str, tuple[str, float]] = field(default_factory=dict)


@dataclass
class Verdict:
    """What `verify_contract` found: problems in words, and by output the largest relative error, or of a quantised
    model the value of the metric that `metrics` names."""

    problems: list[str] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        return not self.problems


def reference_fixture(
    graph: Graph, parameters: Mapping[str, np.ndarray], inputs: Sequence[Mapping[str, np.ndarray]], capacity: int = 0
) -> Fixture:
    """A fixture computed by the reference: `inputs` are the chunks, with `count` where rows are padded.
    Inputs with a default are filled in, so that the fixture is complete without us."""
    states: dict[str, Any] = {}
    expected = []
    complete = []
    if graph.states:
        batch = len(next(iter(inputs[0].values())))
        states = reference.zeros(graph, {"batch": batch, "capacity": capacity})
    for given in inputs:
        env = reference.sizes_of(graph, given)
        chunk = {v.name: given[v.name] if v.name in given else reference.default(v, env, graph.stream)
                 for v in graph.of_kind(Input)}  # fmt: skip
        complete.append(chunk)
        found = reference.run(graph, parameters, chunk, states)
        states = {k: found.pop(k) for k in states}
        expected.append(found)
    return Fixture(complete, expected, capacity)


def write_contract(folder: Path, lowered: Lowered, metadata: Mapping[str, str], fixture: Fixture | None) -> None:
    """Writes contract, fixture and README beside the model, and what else belongs to it, in the folder already."""
    streaming = bool(lowered.states)
    graph = lowered.model.graph
    kept = {x for s in lowered.states for x in (s.past, s.present)}
    contract: dict[str, Any] = {
        "format": FORMAT,
        "producer": f"planform {_version()}",
        "origin": dict(sorted(metadata.items())),
        "form": "step" if streaming else "sequence",
        "runtime": "onnxruntime 1.32 or newer, CPU",
        "ir_version": IR_VERSION,
        "opsets": dict(graph.opset_imports),
        "files": {p.name: _fingerprint(p) for p in sorted(folder.iterdir())},
        "inputs": [_input(v, lowered.below) for v in graph.inputs if v not in kept],
        "outputs": [_tensor(v) for v in graph.outputs if v not in kept],
        "tokenizer": next((name for name in TOKENIZERS if (folder / name).is_file()), None),
    }
    if streaming:
        contract["max_positions"] = lowered.max_positions
        contract["states"] = [_state(s) for s in lowered.states]
    if lowered.quantization.told:
        contract["quantization"] = dict(lowered.quantization.told)
    if fixture is not None:
        _write_fixture(folder / FIXTURE, fixture)
        batch = len(next(iter(fixture.inputs[0].values())))
        contract["fixture"] = {"file": FIXTURE, "chunks": len(fixture.inputs), "batch": batch,
                               "capacity": fixture.capacity, **_agreement(fixture), "of": fixture.of}  # fmt: skip
        contract["files"][FIXTURE] = _fingerprint(folder / FIXTURE)
    about = GENAI_README if NAMES in lowered.model.metadata_props else STEP_README if streaming else SEQUENCE_README
    (folder / README).write_text(about + (QUANTISED_README if fixture is not None and fixture.limits else ""))
    (folder / CONTRACT).write_text(json.dumps(contract, indent=2) + "\n")


def verify_contract(folder: str | Path) -> Verdict:
    """Checks an artefact against its contract in plain onnxruntime: files, names, shapes, dtypes, fixture.

    Raises: OSError or ValueError where there is no readable contract.
    """
    folder = Path(folder)
    contract = json.loads((folder / CONTRACT).read_text())
    if contract.get("format") != FORMAT:
        raise ValueError(f"{folder / CONTRACT} has format {contract.get('format')}, this version reads {FORMAT}")
    verdict = Verdict()
    for name, want in contract["files"].items():
        if not (folder / name).exists():
            verdict.problems.append(f"{name} is missing")
        elif _fingerprint(folder / name) != want:
            verdict.problems.append(f"{name} is not the file that was exported")
    if verdict.problems:
        return verdict
    session = load(folder)
    states = contract.get("states", [])
    want_in = contract["inputs"] + [{**s, "name": s["input"]} for s in states]
    want_out = contract["outputs"] + [{**s, "name": s["output"]} for s in states]
    for what, want, got in (("input", want_in, session.get_inputs()), ("output", want_out, session.get_outputs())):
        have = {g.name: (g.shape, _DTYPES.get(g.type, g.type)) for g in got}
        listed = {w["name"]: (w["shape"], w["dtype"]) for w in want}
        for name in sorted(set(have) | set(listed)):
            if have.get(name) != listed.get(name):
                verdict.problems.append(f"{what} `{name}` is {have.get(name)}, the contract says {listed.get(name)}")
    if "fixture" in contract and not verdict.problems:
        _run_fixture(session, folder, contract, verdict)
    return verdict


_DTYPES = {"tensor(float)": "float32", "tensor(int32)": "int32", "tensor(int64)": "int64", "tensor(bool)": "bool",
           "tensor(int8)": "int8", "tensor(uint8)": "uint8"}  # fmt: skip


def _run_fixture(session: ort.InferenceSession, folder: Path, contract: Mapping[str, Any], verdict: Verdict) -> None:
    about = contract["fixture"]
    stream = Session(session) if contract["form"] == "step" else None
    if stream:
        stream.reset(about["batch"], about["capacity"])
    limits = about.get("limits", {})
    means = {name: Divergence(limit["metric"]) for name, limit in limits.items()}
    with np.load(folder / about["file"], allow_pickle=False) as arrays:
        for i in range(about["chunks"]):
            inputs, expected = (
                {k.removeprefix(f"{i}/{kind}/"): arrays[k] for k in arrays.files if k.startswith(f"{i}/{kind}/")}
                for kind in ("in", "out")
            )
            count = inputs.pop("count", None) if stream else None
            got = stream.step(inputs, count) if stream else run(session, inputs)
            for name, want in expected.items():
                if name in means:
                    if got[name].shape != want.shape:
                        verdict.problems.append(f"chunk {i}: output `{name}` has shape {got[name].shape}")
                        return
                    means[name].add(valid_entries(want, count), valid_entries(got[name], count))
                    continue
                error = difference(got[name], want, count)
                verdict.errors[name] = max(error, verdict.errors.get(name, 0.0))
                if not error <= about["tolerance"]:
                    verdict.problems.append(f"chunk {i}: output `{name}` is off by {error:.1e} of its largest value")

    for name, mean in means.items():
        value = verdict.errors[name] = mean.value
        verdict.metrics[name] = mean.metric
        if not value <= limits[name]["limit"]:
            verdict.problems.append(
                f"output `{name}`: {METRICS[mean.metric]} is {value:.1e}, the contract says at most "
                f"{limits[name]['limit']:.1e}"
            )


def _agreement(fixture: Fixture) -> dict[str, Any]:
    """What the contract says of how close outputs must come to those expected."""
    if not fixture.limits:
        return {"tolerance": TOLERANCE}
    return {"limits": {name: {"metric": metric, "limit": limit, "meaning": METRICS[metric]}
                       for name, (metric, limit) in fixture.limits.items()}}  # fmt: skip


def valid_entries(x: np.ndarray, count: np.ndarray | None) -> np.ndarray:
    """x [batch, time, ..] without a row's entries beyond its count, [entries, ..]; as it is where it has only one
    entry a row."""
    if count is None or x.ndim < 2 or x.shape[1] == 1:
        return x
    found: np.ndarray = x[np.arange(x.shape[1]) < np.asarray(count)[:, None]]
    return found


def difference(got: np.ndarray, want: np.ndarray, count: np.ndarray | None = None) -> float:
    """max |got - want| / max |want|; entries of a row beyond its count are left out. Infinite for a wrong shape."""
    if got.shape != want.shape:
        return float("inf")
    got, want = valid_entries(got, count), valid_entries(want, count)
    if not want.size:
        return 0.0
    scale = np.max(np.abs(want)) or 1.0
    error = np.max(np.abs(got.astype(np.float64) - want)) / scale
    return float(error) if np.isfinite(error) else float("inf")


def _write_fixture(path: Path, fixture: Fixture) -> None:
    arrays: dict[str, np.ndarray] = {}
    for i, (inputs, expected) in enumerate(zip(fixture.inputs, fixture.expected, strict=True)):
        arrays |= {f"{i}/in/{k}": np.asarray(v) for k, v in inputs.items()}
        arrays |= {f"{i}/out/{k}": np.asarray(v) for k, v in expected.items()}
    np.savez(path, allow_pickle=False, **arrays)  # type: ignore[arg-type]


def _fingerprint(path: Path) -> dict[str, Any]:
    with open(path, "rb") as f:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(f, "sha256").hexdigest()}


def _tensor(v: ir.Value) -> dict[str, Any]:
    assert v.shape is not None and v.dtype is not None
    shape = [d if isinstance(d, int) else str(d.value) for d in v.shape]
    return {"name": v.name, "dtype": v.dtype.numpy().name, "shape": shape}


def _input(v: ir.Value, below: Mapping[str, int]) -> dict[str, Any]:
    about = _tensor(v)
    return {**about, "below": below[about["name"]]} if about["name"] in below else about


def _state(s: StateLayout) -> dict[str, Any]:
    about = _tensor(s.past)
    assert isinstance(s.type, TensorType) and s.present is not None
    return {
        "path": s.path, "input": about["name"], "output": s.present.name, "dtype": about["dtype"],
        "shape": about["shape"], "initial": "zeros", "layout": s.layout, "meaning": _LAYOUTS[s.layout],
        "in_place": s.layout in IN_PLACE,
    }  # fmt: skip


def _version() -> str:
    try:
        return version("planform")
    except PackageNotFoundError:
        return "from source"
