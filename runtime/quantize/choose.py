"""From what was wished for to what is written: calibrate, round, measure, and give more bits where they are needed."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from planform.backends import onnx
from planform.backends.onnx.quantization import CACHE_WIDTH, PLAIN, Product, Quantization, Scheme
from planform.backends.onnx.quantization.calibration import cache_scales, image_ranges, second_moments
from planform.compiler.ir import Graph
from planform.compiler.passes.pipeline import optimise

from ..errors import UserError
from .budget import Chosen, promotions, within
from .entries import Entries, share_of
from .measure import divergence, metrics_of, of_fixture, outputs
from .sensitivity import sensitivities
from .store import Store

BLOCK = 128
"""With error compensation blocks of 128 are closer than blocks of 32 rounded alone, and take 4.25 bits a weight
instead of 5 (see backends/onnx/README.md)."""

SLACK, FLOOR = 1.5, 1e-4
"""The contract's limit is what was measured times this, and at least that: another processor rounds elsewhere."""

ENTRIES_ALONE = 2
"""Streams on which each matrix is tried alone."""


@dataclass(frozen=True)
class Wish:
    """weights: `int4`, `w8`, `int8`, or None for float32; block: entries that share a scale (`int8` has one a column);
    cache: whether key and value caches take 8 bits; budget: the largest divergence allowed."""

    weights: str | None = None
    block: int = BLOCK
    cache: bool = False
    budget: float | None = None

    def scheme(self) -> Scheme | None:
        if self.weights is None:
            return None
        return Scheme(self.weights, 0 if self.weights == "int8" else self.block)


@dataclass(frozen=True)
class Choice:
    """quantization: what to write; limits: what its fixture is to hold, see `onnx.Fixture`; told: what was measured."""

    quantization: Quantization
    limits: Mapping[str, tuple[str, float]]
    told: Mapping[str, Any]


@contextmanager
def quantise(
    graph: Graph,
    exported: Graph,
    get: Callable[[str], np.ndarray],
    wish: Wish,
    entries: Entries,
    *,
    positions: int,
    fixture: onnx.Fixture | None,
    report: Callable[[str], None] = lambda _: None,
) -> Iterator[Choice]:
    """Decides how a model is stored; what it rounded is on disk until the block ends.

    graph, exported  the whole-sequence graph, and what is made of it for the file
    get              a parameter by its logical name
    fixture          of the unquantised model
    Raises: UserError where the budget can't be kept, or there is nothing to quantise.
    """
    with tempfile.TemporaryDirectory(prefix="planform-quantise-") as scratch:
        yield _Run(graph, exported, get, wish, entries, positions, fixture, report, Path(scratch)).choose()


class _Run:
    def __init__(
        self, graph: Graph, exported: Graph, get: Callable[[str], np.ndarray], wish: Wish, entries: Entries,
        positions: int, fixture: onnx.Fixture | None, report: Callable[[str], None], scratch: Path,
    ) -> None:  # fmt: skip
        self.exported, self.get, self.wish, self.entries = exported, get, wish, entries
        self.positions, self.fixture, self.report, self.scratch = positions, fixture, report, scratch
        self.step = bool(exported.states)
        # The head must see every entry, so here the outputs aren't cut down to the last one.
        self.every = optimise(graph, "onnx", "step") if self.step else exported
        self.metrics = metrics_of(exported)
        self.store = Store(scratch / "rounded")
        base = Quantization(wish.scheme())
        lowered = onnx.lower(self.every, get, max_positions=positions)
        self.products: dict[str, Product] = {}
        for p in lowered.products:
            # A matrix that is also looked up is stored row by row: its use as a transposed one says how.
            if base.of(p.name, p.rows, p.columns) and (p.name not in self.products or p.transposed):
                self.products[p.name] = p
        # Kernels of convolutions are whole numbers where images are, which takes kernels and ranges alike.
        self.kernels = lowered.kernels if wish.weights == "int8" else {}
        self.plain = lowered
        if wish.weights and not self.products and not self.kernels:
            raise UserError("this model has no matrix to quantise", help="export it without --quantize")

    def scheme(self, p: Product) -> Scheme:
        scheme = self.wish.scheme()
        assert scheme is not None
        return scheme.table() if p.transposed else scheme

    def choose(self) -> Choice:
        self.report("the float32 model on held-out entries")
        plain = self.written(PLAIN, "float")
        self.want = outputs(plain, self.step, self.entries.held_out)
        self.cache = self.scales(plain)
        self.images = image_ranges(self.plain, self.entries.calibration) if self.kernels else {}
        self.calibrate({name: [self.scheme(p)] for name, p in self.products.items()})
        chosen, value = self.fitted()
        quantization = self.quantization(chosen)
        folder = self.written(quantization, "candidate")
        told = self.told(chosen, value)
        limits = {}
        if self.fixture is not None:
            for name, found in of_fixture(folder, self.step, self.fixture, self.metrics).items():
                limits[name] = (self.metrics[name], float(f"{max(SLACK * found, FLOOR):.2g}"))
        return Choice(replace(quantization, told=told), limits, told)

    def quantization(self, chosen: Chosen) -> Quantization:
        return Quantization(self.wish.scheme(), chosen, self.store.round, self.cache, self.images)

    def written(self, quantization: Quantization, name: str) -> Path:
        try:
            return onnx.export(
                self.exported, self.get, self.scratch / name, max_positions=self.positions, quantization=quantization
            )
        except onnx.CannotLower as error:
            raise UserError(f"this model has no ONNX form: {error}") from error

    def scales(self, plain: Path) -> dict[str, np.ndarray]:
        if not self.wish.cache:
            return {}
        if not self.step:
            raise UserError("this model keeps no caches", help="leave --cache out")
        session = onnx.Session(plain, spin=False)
        self.report("the range of the caches")
        found = cache_scales(session, self.entries.calibration)
        found = {path: s for path, s in found.items() if s.shape[1] % CACHE_WIDTH == 0}
        if not found:
            raise UserError("this model has no cache that the runtime can keep in 8 bits", help="leave --cache out")
        return found

    def calibrate(self, wanted: Mapping[str, list[Scheme]]) -> None:
        """Rounds matrices with the moments of their inputs."""
        wanted = {n: [s for s in schemes if not self.store.holds(n, s)] for n, schemes in wanted.items()}
        wanted = {n: schemes for n, schemes in wanted.items() if schemes}
        if not wanted:
            return
        lowered = onnx.lower(self.every, self.get, max_positions=self.positions)
        self.report(f"calibrating {len(wanted)} matrices")
        for moments in second_moments(lowered, self.entries.calibration, wanted):
            for name in moments:
                w = matrix(self.products[name])
                for scheme in wanted[name]:
                    self.store.put(name, scheme, w, moments[name])

    def measure(self, chosen: Chosen) -> float:
        """The divergence with some matrices stored otherwise than wished for, summed over the outputs."""
        finer: dict[str, list[Scheme]] = {n: [s] for n, s in chosen.items() if s is not None}
        self.calibrate(finer)
        folder = self.written(self.quantization(chosen), "candidate")
        found = divergence(self.metrics, self.want, outputs(folder, self.step, self.entries.held_out))
        value = sum(found.values())
        more = f" with {len(chosen)} matrices in more bits" if chosen else ""
        self.report(f"divergence {value:.2e}{more}")
        return value

    def fitted(self) -> tuple[Chosen, float]:
        """What must be stored in more bits to keep the budget, and the divergence then."""
        budget = self.wish.budget
        value = self.measure({})
        if budget is None or value <= budget:
            return {}, value
        refusal = f"the error is {value:.1e}, over the budget of {budget:g}"
        if not self.products:
            raise UserError(refusal, help="leave --cache out, or allow more")
        self.report("what each matrix costs alone")
        lowered = onnx.lower(self.every, self.get, max_positions=self.positions)
        schemes = {name: self.scheme(p) for name, p in self.products.items()}
        chunk = share_of(self.entries.calibration[0], ENTRIES_ALONE)
        alone = partial(self.alone, schemes)
        cost = sensitivities(lowered, self.products, alone, chunk, self.metrics)
        steps = promotions(list(self.products.values()), schemes, cost)
        found = within(budget, steps, self.measure, value)
        if found is None or all(found[0].get(name, s) is None for name, s in schemes.items()):
            raise UserError(
                f"{refusal}, and keeping it would leave no matrix quantised",
                help="allow more, or leave --cache out" if self.cache else "allow more",
            )
        return found

    def alone(self, schemes: Mapping[str, Scheme], name: str) -> Any:
        return self.store.round(name, lambda: matrix(self.products[name]), schemes[name])

    def told(self, chosen: Chosen, value: float) -> dict[str, Any]:
        """What the contract says: how much is stored how, and what that costs."""
        kinds: Counter[str] = Counter()
        for name, p in self.products.items():
            scheme = chosen.get(name, self.scheme(p))
            kinds[
                "float32"
                if scheme is None
                else f"{scheme.kind}, {'blocks of ' + str(scheme.block) if scheme.block else 'a scale a column'}"
            ] += p.rows * p.columns  # noqa: E501
        if self.kernels:
            kinds["int8, a scale a channel"] = sum(self.kernels.values())
        first = next(iter(self.entries.held_out.values()))
        metric = " + ".join(sorted(set(self.metrics.values())))
        return {
            "weights": dict(sorted(kinds.items())),
            "cache": "int8" if self.cache else None,
            "divergence": {"metric": metric, "value": float(f"{value:.3g}"), "budget": self.wish.budget,
                           "streams": len(first), "entries": self.entries.source},
        }  # fmt: skip


def matrix(p: Product) -> np.ndarray:
    """The product's weight as [columns, rows]."""
    tensor = p.weight.const_value
    assert tensor is not None
    array: np.ndarray = tensor.numpy()
    return array if p.transposed else np.ascontiguousarray(array.T)
