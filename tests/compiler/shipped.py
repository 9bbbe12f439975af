"""Every graph that the shipped models give, in every form and after every pass."""

from __future__ import annotations

from collections.abc import Iterator

from planform.compiler.elaborate import elaborate
from planform.compiler.ir import Graph
from planform.compiler.passes.last import last_only
from planform.compiler.passes.pipeline import pipeline
from planform.compiler.passes.stateful import stateful
from planform.compiler.program import program
from planform.spec import SpecError, load, shipped


def models() -> Iterator[tuple[str, str | None]]:
    """(name, size) of all shipped specs."""
    for name in shipped():
        try:
            sizes = load(name).sizes
        except SpecError as e:  # several sizes and no default
            sizes = e.diagnostics[0].expected
        yield from ((name, size) for size in (sizes or (None,)))


def stages() -> Iterator[tuple[str, Graph]]:
    """(a name for it, a graph)."""
    for name, size in models():
        spec = load(name, size)
        label = f"{name}@{size}" if size else name
        for key in spec.graphs:
            graph = elaborate(spec, key)
            yield f"{label} {key}", graph
            forms = [("training", graph)]
            if graph.stream:
                forms.append(("step", last_only(stateful(graph))))
                yield f"{label} {key} step", forms[-1][1]
            for backend in ("reference", "xla", "onnx"):
                for form, start in forms:
                    now = start
                    for one in pipeline(backend, form):
                        now = one(now)
                        yield f"{label} {key} {backend} {form} {one}", now
        if spec.train:
            for update in program(spec).updates:
                now = update.loss
                yield f"{label} {update.name}", now
                for one in pipeline("xla", "training"):
                    now = one(now)
                    yield f"{label} {update.name} {one}", now
