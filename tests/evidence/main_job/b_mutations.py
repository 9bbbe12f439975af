"""Wrong models are noticed, and the place is named."""

from __future__ import annotations

from typing import Any

from planform.compiler.elaborate import elaborate
from planform.runtime.verify import WHOLE, verify
from planform.spec import load
from tests.evidence import row
from tests.runtime.mutations import mutations


@row(
    "main_job",
    "mutations",
    "a broken mask, swapped layer order, missing cap and the like, given to one backend, make verify fail, and it "
    "names the first value that differs and its line of the spec",
    4,
)
def wrong_models() -> tuple[Any, bool]:
    spec = load("gemma2@small", overrides=("layers=2",))
    graph = elaborate(spec)
    figure: dict[str, Any] = {}
    holds = True
    for name, wrong in mutations(graph).items():
        for backend in ("xla", "onnx"):
            # XLA compiles each wrong graph anew, so it gets the one form that says most.
            forms = (WHOLE,) if backend == "xla" else (WHOLE, *_streams(name))
            for form in forms:
                found = verify(graph, backends=(backend,), forms=(form,), edits={backend: wrong.edit}).divergences
                good = len(found) == 1 and found[0].path == wrong.path
                good = good and _text(spec, found[0].place).startswith(wrong.text)
                holds &= good
                if form == WHOLE and backend == "xla" or not good:
                    figure[name] = (
                        f"{found[0].path} at {found[0].place}" if found else f"not found on {backend}, {form}"
                    )
    return figure, holds


def _streams(name: str) -> tuple[str, ...]:
    """A mask that looks ahead has no streaming form: the compiler refuses it."""
    return () if name == "mask that looks ahead" else ("prompt", "token by token")


def _text(spec: Any, place: str | None) -> str:
    """What stands in the spec at `file:line:column`."""
    _, line, column = str(place).rsplit(":", 2)
    text: str = spec.source.line(int(line))
    return text[int(column) - 1 :]
