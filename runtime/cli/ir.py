"""`planform ir`: the typed graph as text."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import GraphName, Set, Size, SpecName, load_spec

if TYPE_CHECKING:
    from planform.compiler.ir import Graph
    from planform.spec import Spec

EPILOG = "Example: planform ir gemma2@2b --form step --backend onnx --after canonicalise"


class Form(StrEnum):
    training = "training"
    step = "step"


class Backend(StrEnum):
    reference = "reference"
    xla = "xla"
    onnx = "onnx"


def add(app: typer.Typer) -> None:
    app.command(epilog=EPILOG)(ir)


def graph_or_loss(spec: Spec, name: str | None) -> Graph:
    """A graph of the spec, or the loss of an update of its training program. Raises: SpecError, UserError."""
    from planform.compiler.graphs import FIT, SAMPLE, graph_named
    from planform.compiler.program import program

    from ..errors import UserError

    if name is None or name in (*spec.graphs, FIT, SAMPLE) or spec.train is None:
        return graph_named(spec, name)
    losses = {u.name: u.loss for u in program(spec).updates}
    if name not in losses:
        raise UserError(f"there is no graph `{name}`", help="one of " + ", ".join([*spec.graphs, *losses]))
    return losses[name]


def ir(
    spec: SpecName,
    size: Size = None,
    overrides: Set = None,
    graph: GraphName = None,
    form: Annotated[Form | None, typer.Option("--form", help="Whole sequences, or one step of a stream.")] = None,
    backend: Annotated[Backend | None, typer.Option("--backend", help="Run the passes that this one uses.")] = None,
    after: Annotated[str | None, typer.Option("--after", metavar="PASS", help="Stop behind this pass.")] = None,
) -> None:
    """Print a graph as text: as written, or after the passes of a backend."""
    from planform.compiler.passes.pipeline import optimise, pipeline
    from planform.compiler.text import to_text

    from ..errors import UserError

    found = graph_or_loss(load_spec(spec, size, overrides), graph)
    if form is None and backend is None and after is None:
        print(to_text(found))
        return
    target: Any = (backend or Backend.xla).value
    shape: Any = (form or Form.training).value
    passes = [p.name for p in pipeline(target, shape)]
    if after is not None and after not in passes:
        raise UserError(f"no pass `{after}` runs for {target} in {shape} form", help="there are " + ", ".join(passes))
    seen: dict[str, Graph] = {}
    found = optimise(found, target, shape, after=lambda p, g: seen.__setitem__(p.name, g))
    print(to_text(seen[after] if after else found))
