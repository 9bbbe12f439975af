"""Random numbers that a training program or a sampler names: `noise: normal[batch, d]`."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from planform.spec import TensorDecl

from ..ir import Input, Origin, Value
from ..ops.elementwise import Cast, Floor, Mul, number
from ..size import divide, symbol, symbols
from ..types import Dim, TensorType
from .blocks import Elaborator


def add_draws(e: Elaborator, draws: Mapping[str, TensorDecl]) -> dict[str, Value]:
    """Draws as inputs that fill themselves, keyed by seed, step and path; adds them to what expressions may name.

    normal[dims], uniform[dims] in [0, 1), category[dims, n]: whole numbers from 0 to n - 1. Raises: SpecError.
    """
    found = {name: _draw(e, name, decl) for name, decl in draws.items()}
    e.own.update(found)
    return found


def draw_type(e: Elaborator, decl: TensorDecl) -> TensorType:
    """What a draw gives; `2 * batch` is a dim `batch`, twice as large. Raises: SpecError."""
    t = e.declared(decl)
    t = t.with_dims(_named(d, t.names) for d in t.dims)
    if decl.dtype != "category":
        return t.with_dtype("f32")
    if not t.rank or not isinstance(t.sizes[-1], int):
        raise e.error("PF0513", f"{t} doesn't say how many categories there are", decl.span,
                      help="the last size is their number: category[batch, 10]")  # fmt: skip
    return TensorType("i32", t.dims[:-1])


def _named(d: Dim, taken: Collection[str | None]) -> Dim:
    """A multiple of a symbol with that symbol's name."""
    names = symbols(d.size) - set(taken) if d.name is None else ()
    return next((Dim(n, d.size) for n in names if isinstance(divide(d.size, symbol(n)), int)), d)


def _draw(e: Elaborator, name: str, decl: TensorDecl) -> Value:
    t = draw_type(e, decl)
    kind = "normal" if decl.dtype == "normal" else "uniform"
    origin = Origin(f"sample.{name}", str(decl.span))
    value: Value = e.builder.add(Input(name, t.with_dtype("f32"), origin, kind, f"sample.{name}"))
    if decl.dtype == "category":
        e.builder.origin = origin
        many = number(e.builder, float(e.declared(decl).sizes[-1]))  # type: ignore[arg-type]
        value = e.builder.emit(Cast("i32"), e.builder.emit(Floor(), e.builder.emit(Mul(), value, many)))
    return value
