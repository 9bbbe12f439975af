"""What calibration inputs do inside a model: the second moments of what each matrix is multiplied by, and how far the
entries of caches go."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..lowering import IR_VERSION, Lowered
from ..session import MODEL, PAST, Session, load, run
from ..writing import save
from .products import Product
from .scheme import Range

Inputs = Mapping[str, np.ndarray]

AT_ONCE = 1 << 30
"""Bytes of moments that are gathered in one pass over the inputs, at most (one matrix may need more)."""


def second_moments(
    lowered: Lowered, inputs: Sequence[Inputs], names: Collection[str] | None = None, at_once: int = AT_ONCE
) -> Iterator[dict[str, np.ndarray]]:
    """The mean of x x^T, float32[rows, rows], of the inputs x of each product, by the name of its matrix.

    lowered  the model in float32, best without outputs of the last entry only: the head sees every entry then
    inputs   chunks [batch, time, ..] of new streams, every entry of them valid
    names    of the matrices; all without them
    Yields groups that fit into `at_once` bytes, each from one pass over the inputs; matrices with the same input share
    one array.
    """
    wanted = [p for p in lowered.products if names is None or p.name in names]
    for group in _groups(wanted, at_once):
        sums = _pass(lowered, group, inputs)
        yield {p.name: sums[str(p.x.name)] for p in group}


def _groups(products: Sequence[Product], at_once: int) -> Iterator[list[Product]]:
    group: list[Product] = []
    held: dict[str, int] = {}
    for p in products:
        held[str(p.x.name)] = 4 * p.rows**2
        if group and sum(held.values()) > at_once:
            yield group
            group, held = [], {str(p.x.name): 4 * p.rows**2}
        group.append(p)
    if group:
        yield group


def _pass(lowered: Lowered, group: Sequence[Product], inputs: Sequence[Inputs]) -> dict[str, np.ndarray]:
    """The mean of x x^T for the inputs of some products, by the input's name."""
    seen = {str(p.x.name): p for p in group}
    totals = {name: np.zeros((p.rows, p.rows), np.float32) for name, p in seen.items()}
    entries = dict.fromkeys(seen, 0)
    for found in _inside(lowered, [p.x for p in seen.values()], inputs):
        for name, x in found.items():
            flat = x.reshape(-1, x.shape[-1])
            totals[name] += flat.T @ flat
            entries[name] += len(flat)
    return {name: total / max(entries[name], 1) for name, total in totals.items()}


def _inside(
    lowered: Lowered, values: Sequence[ir.Value], inputs: Sequence[Inputs]
) -> Iterator[Mapping[str, np.ndarray]]:
    """Values inside the model, by name, for each of the inputs."""
    graph = lowered.model.graph
    part = ir.convenience.extract(graph, graph.inputs, values)
    part.name = graph.name
    with tempfile.TemporaryDirectory() as scratch:
        save(ir.Model(part, ir_version=IR_VERSION), Path(scratch) / MODEL)
        session = load(scratch)
        for chunk in inputs:
            yield run(session, new_streams(session, chunk))
        del session


def image_ranges(lowered: Lowered, inputs: Sequence[Inputs]) -> dict[str, Range]:
    """What the values of the images that 8 bits may hold lie between, by name; a model in float32."""
    found: dict[str, Range] = {}
    for values in _inside(lowered, lowered.images, inputs):
        for name, x in values.items():
            before = found.get(name, Range(0.0, 0.0))
            found[name] = Range(min(before.low, float(x.min())), max(before.high, float(x.max())))
    return found


def new_streams(session: object, chunk: Inputs) -> dict[str, np.ndarray]:
    """A chunk with all that a model in step form wants besides: states of new streams, all entries valid."""
    first = next(iter(chunk.values()))
    batch, time = first.shape[:2]
    sizes = {"batch": batch, "capacity": time}
    feeds = dict(chunk)
    for i in session.get_inputs():  # type: ignore[attr-defined]
        if i.name.startswith(PAST):
            dtype = np.float32 if i.type == "tensor(float)" else np.int32
            feeds[i.name] = np.zeros([d if isinstance(d, int) else sizes[d] for d in i.shape], dtype)
        elif i.name == "count":
            feeds[i.name] = np.full(batch, time, np.int32)
    return feeds


def cache_scales(session: Session, inputs: Sequence[Inputs]) -> dict[str, np.ndarray]:
    """Scales of 8 bit caches, float32[heads, width] by the state's path, under which what the caches hold after any
    of the chunks just fits: one a channel, as kept by a model in float32."""
    largest: dict[str, np.ndarray] = {}
    for chunk in inputs:
        batch, time = next(iter(chunk.values())).shape[:2]
        session.reset(batch, time)
        session.step(chunk)
        for path, array in session.caches().items():
            now = np.abs(array).max((0, 2))
            largest[path] = np.maximum(now, largest.get(path, now))
    return {path: np.maximum(a, 1e-6).astype(np.float32) / 127 for path, a in largest.items()}
