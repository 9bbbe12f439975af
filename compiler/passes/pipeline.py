"""Which passes a backend runs, in which order, and why.

A pass is either needed for what it makes (a step form, an output) or used for its speed. The latter are in
GAINS with what they were measured to gain on each backend, and run only where that is a gain. The figures are
processor time without / with the pass on a small Gemma-2-like model or a field, with the 95% interval, from
`python -m tests.benchmarks.passes` (time on the clock says the same, less surely, on a shared machine).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..ir import Graph
from .base import Explanation, Pass, Trace
from .canonicalise import Canonicalise
from .cse import CommonSubexpressions
from .dead import DeadCode
from .fixed_interpolation import FixedInterpolation
from .fold import FoldConstants
from .local_attention import LocalAttention
from .loss_head import LossHead
from .loss_weight import LossWeight
from .map_first import MapFirst
from .pack_qkv import PackQkv
from .residual_norm import ResidualNorm
from .scale_query import ScaleQuery
from .stateful import Stateful

Backend = Literal["reference", "xla", "onnx"]
Form = Literal["training", "step"]

CLEANUP: tuple[Pass, ...] = (Canonicalise(), FoldConstants(), CommonSubexpressions(), DeadCode())
"""Not for speed: they leave the one form that other rules match on, and only the inputs that are used."""


@dataclass(frozen=True)
class Gain:
    """Processor time without a pass over that with it, and the 95% interval of the ratio; `of` says of what."""

    backend: Backend
    form: Form
    ratio: float
    low: float
    high: float
    of: str

    @property
    def pays(self) -> bool:
        return self.low > 1


GAINS: tuple[tuple[Pass, tuple[Gain, ...]], ...] = (
    (LossHead(), (Gain("xla", "training", 1.15, 1.05, 1.20, "loss and gradient, 2 x 1024"),)),
    (LocalAttention(), (Gain("xla", "training", 1.23, 1.19, 1.28, "loss and gradient, 1 x 2048, window 128"),)),
    (PackQkv(), (Gain("onnx", "step", 1.02, 1.01, 1.04, "a decoded token"),)),
    (ScaleQuery(), (Gain("onnx", "step", 1.023, 1.002, 1.056, "a decoded token"),)),
    (ResidualNorm(), (Gain("onnx", "step", 1.00, 1.00, 1.02, "a decoded token"),)),
    (FixedInterpolation(), (Gain("onnx", "training", 1.037, 1.005, 1.049, "16 images of 32 x 32 from 8 x 8 x 16"),)),
    (MapFirst(), (Gain("onnx", "training", 1.61, 1.50, 1.62, "16 images of 32 x 32 from 8 x 8 x 256"),)),
)


def _used(gains: tuple[Gain, ...], backend: Backend, form: Form) -> bool:
    return any(g.pays for g in gains if (g.backend, g.form) == (backend, form))


def pipeline(backend: Backend, form: Form) -> tuple[Pass, ...]:
    """The passes of a backend for a training graph, or for one that is to run step by step.

    The reference runs graphs as they are: what it says must not depend on any rewrite.
    """
    needed: tuple[Pass, ...] = (Stateful(),) if form == "step" else (LossWeight(),)
    if backend == "reference":
        return needed
    return (*needed, *CLEANUP, *(p for p, gains in GAINS if _used(gains, backend, form)))


def optimise(
    graph: Graph,
    backend: Backend,
    form: Form,
    trace: Trace | None = None,
    after: Callable[[Pass, Graph], None] | None = None,
) -> Graph:
    """The graph after the passes of `pipeline`; `after` sees it behind each of them.

    Raises: SpecError where a pass refuses the graph (`form` "step" of a graph that isn't causal).
    """
    trace = trace if trace is not None else Trace()
    for p in pipeline(backend, form):
        graph = p(graph, trace)
        if after:
            after(p, graph)
    return graph


def explain(graph: Graph, backend: Backend, form: Form = "training") -> list[Explanation]:
    """What each rule did to a graph on its way to a backend, and what nearly matched and why it did not.

    Passes that are not used on the backend are asked too; their findings come last and say so.
    Raises: SpecError as `optimise` does.
    """
    trace = Trace()
    graph = optimise(graph, backend, form, trace)
    unused = Trace()
    for p, _ in GAINS:
        if backend != "reference" and p not in pipeline(backend, form):
            p(graph, unused)
    note = f"would fire, but no gain was measured on {backend}"
    others = [Explanation(e.rule, "unused", e.op, e.origin, note) for e in unused.explanations if e.outcome == "fired"]
    return trace.explanations + others
