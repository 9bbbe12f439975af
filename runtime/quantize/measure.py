"""What an artefact gives for held-out entries, and how far another one is from that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from planform.backends import onnx
from planform.backends.onnx.quantization.calibration import new_streams
from planform.compiler.ir import Graph, Input

from .entries import Chunk

SINGLES = 32
"""Entries that are fed one by one behind the prompt, as in generation."""

PROMPT = 128
"""Entries of the prompt, at most."""

Outputs = list[dict[str, np.ndarray]]


def metrics_of(graph: Graph) -> dict[str, str]:
    """The metric of each output (METRICS): `kl` where it weighs the very things that an input of the graph picks from a
    table, as logits over a vocabulary do; else `rms`."""
    picked = set()
    for node in graph.walk():
        if node.op.name == "embed" and isinstance(node.inputs[0], Input):
            picked.add(node.inputs[1].type.dims[0])
    states = {s.path for s in graph.states}
    return {
        name: "kl" if v.type.rank and v.type.dims[-1] in picked else "rms"
        for name, v in graph.outputs.items()
        if name not in states
    }


def outputs(source: Path, step: bool, chunk: Chunk) -> Outputs:
    """What an artefact gives: for a whole sequence at once, or after a prompt and then entry by entry."""
    if not step:
        session = onnx.load(source)
        return [onnx.run(session, new_streams(session, chunk))]
    first = next(iter(chunk.values()))
    stream = onnx.Session(source, spin=False)
    stream.reset(len(first), first.shape[1])
    return [{k: np.array(v) for k, v in stream.step(part).items()} for part in _parts(chunk)]


def _parts(chunk: Chunk) -> Iterator[Chunk]:
    time = next(iter(chunk.values())).shape[1]
    prompt = max(1, min(PROMPT, time - min(SINGLES, time // 2)))
    yield {k: a[:, :prompt] for k, a in chunk.items()}
    for i in range(prompt, min(prompt + SINGLES, time)):
        yield {k: a[:, i : i + 1] for k, a in chunk.items()}


def divergence(metrics: Mapping[str, str], want: Outputs, got: Outputs) -> dict[str, float]:
    """The value of each output's metric over everything that was fed."""
    means = {name: onnx.Divergence(metric) for name, metric in metrics.items()}
    for w, g in zip(want, got, strict=True):
        for name, mean in means.items():
            mean.add(w[name], g[name])
    return {name: mean.value for name, mean in means.items()}


def of_fixture(source: Path, step: bool, fixture: onnx.Fixture, metrics: Mapping[str, str]) -> dict[str, float]:
    """The same against what a fixture expects."""
    means = {name: onnx.Divergence(metric) for name, metric in metrics.items()}
    stream = onnx.Session(source, spin=False) if step else None
    session = stream.session if stream else onnx.load(source)
    if stream:
        stream.reset(len(next(iter(fixture.inputs[0].values()))), fixture.capacity)
    for inputs, want in zip(fixture.inputs, fixture.expected, strict=True):
        count = inputs.get("count") if stream else None
        own = {k: v for k, v in inputs.items() if k != "count"} if stream else inputs
        got = stream.step(own, count) if stream else onnx.run(session, own)
        for name, mean in means.items():
            mean.add(onnx.valid_entries(want[name], count), onnx.valid_entries(got[name], count))
    return {name: mean.value for name, mean in means.items()}
