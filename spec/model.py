"""A checked spec: what `load` returns and the compiler reads.

Everything here is plain data with spans. Names inside expressions are not yet resolved against the ops
(the compiler knows those), but the document's shape, its overrides, its sizes and its definitions are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .ast import Body, Call, Expr, Name
from .diagnostics import Diagnostic
from .source import Source, Span


@dataclass(frozen=True)
class DimDef:
    """A named size: an integer, a float, or arithmetic over other dims (kept as an expression)."""

    name: str
    value: Expr
    span: Span
    origin: str  # "dims", "size 2b" or "--set"


@dataclass(frozen=True)
class TensorDecl:
    """`int[batch, time]`: a dtype word and one expression per dim (symbols stay names)."""

    dtype: str  # float | int | bool, or an exact one such as bfloat16; in `sample` one of schema.DRAWS
    dims: tuple[Expr, ...]
    span: Span


@dataclass(frozen=True)
class ParamDef:
    """A tensor that several places share, declared under `params`."""

    name: str
    shape: tuple[Expr, ...]
    init: Expr | None
    span: Span


@dataclass(frozen=True)
class Parameter:
    """A parameter of a block: a name and, if optional, its default."""

    name: str
    default: Expr | None
    span: Span


@dataclass(frozen=True)
class BlockDef:
    name: str
    parameters: tuple[Parameter, ...]
    body: Body
    span: Span  # of the name
    prelude: bool = False


@dataclass(frozen=True)
class GraphDef:
    name: str
    inputs: dict[str, TensorDecl]
    body: Body
    outputs: tuple[str, ...]  # empty: the last name of the body
    stream: str | None  # the sequence axis, where written
    span: Span
    outputs_span: Span | None = None


@dataclass(frozen=True)
class Section:
    """A section the spec room keeps as checked data: `values` holds plain scalars, lists and mappings,
    with expressions already parsed where the schema says so; `spans` gives the place of each key path
    ("optimizer", "inner.steps", ...)."""

    values: dict[str, Any]
    spans: dict[str, Span]
    span: Span


@dataclass(frozen=True)
class ShardingRule:
    dim: str
    axes: tuple[str, ...]
    span: Span
    axes_span: Span


@dataclass(frozen=True)
class Used:
    """Another spec that `uses` names: its graphs can be called in `train`, its parameters are frozen."""

    name: str
    text: str  # as written: a file or a shipped name, with `@size` if wanted
    span: Span  # of the name
    read: Callable[[], Spec] = field(repr=False, compare=False)

    @cached_property
    def spec(self) -> Spec:
        """The spec itself, read when it is first asked for. Raises: SpecError."""
        return self.read()

    def graph(self, name: str | None = None) -> GraphDef | None:
        """The graph of that name, the only one if no name is given; None where there is no such graph."""
        graphs = self.spec.graphs
        if name is None:
            return next(iter(graphs.values())) if len(graphs) == 1 else None
        return graphs.get(name)


@dataclass(frozen=True)
class Spec:
    name: str
    size: str | None
    paper: str | None
    source: Source
    dims: dict[str, DimDef]
    params: dict[str, ParamDef]
    blocks: dict[str, BlockDef]  # the spec's own and the prelude's
    graphs: dict[str, GraphDef]
    sharding: tuple[ShardingRule, ...]
    train: Section | None
    sample: Section | None
    precision: Section | None
    weights: Section | None
    uses: dict[str, Used]
    sizes: tuple[str, ...]  # all that the file offers
    spans: dict[str, Span] = field(default_factory=dict)  # of every key path: "graphs.lm.inputs.tokens"
    warnings: tuple[Diagnostic, ...] = ()

    @property
    def copies(self) -> dict[str, str]:
        """The slow copies of its graphs: what each, such as `slow: ema(actor, decay=0.99)`, is a copy of."""
        targets = (self.train.values.get("targets") or {}) if self.train else {}
        of = {name: expr.arguments[0].value for name, expr in targets.items()
              if isinstance(expr, Call) and expr.arguments}  # fmt: skip
        return {name: v.name for name, v in of.items() if isinstance(v, Name) and v.name in self.graphs}
