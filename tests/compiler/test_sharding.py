"""Sharding by the names of dims."""

from __future__ import annotations

from planform.compiler.analyses.sharding import conflicts, indivisible, normalise, spec_for
from planform.compiler.types import TensorType

RULES = normalise({"batch": ["data", "fsdp"], "vocab": "tensor", "ff": "tensor", "d": "fsdp"})
MESH = {"data": 2, "fsdp": 2, "tensor": 4}


def spec(text: str, mesh: dict[str, int] = MESH) -> tuple[tuple[str, ...] | None, ...]:
    return spec_for(TensorType.parse(text), RULES, mesh)


def test_dims_are_split_over_the_axes_of_their_name() -> None:
    assert spec("f32[vocab=16, d=8]") == (("tensor",), ("fsdp",))
    assert spec("f32[3, d=8, heads=4]") == (None, ("fsdp",), None)


def test_an_axis_serves_once_and_the_earlier_rule_wins() -> None:
    activation = TensorType.parse("f32[batch, time, d=8]")
    assert spec_for(activation, RULES, MESH) == (("data", "fsdp"), None, None)
    (c,) = conflicts(activation, RULES, MESH)
    assert (c.dim, c.axis, c.taken_by) == ("d", "fsdp", "batch")
    # the order of the rules decides, not that of the dims
    assert spec("f32[ff=8, vocab=16]") == (None, ("tensor",))


def test_axes_that_the_mesh_lacks_are_left_out() -> None:
    assert spec("f32[batch, d=8]", {"data": 2}) == (("data",), None)
    assert spec("f32[batch, d=8]", {"tensor": 2}) == (None, None)


def test_sizes_that_do_not_divide_are_found() -> None:
    (found,) = indivisible(TensorType.parse("f32[vocab=18, d=8]"), RULES, MESH)
    assert (found.dim, found.size, found.devices) == ("vocab", 18, 4)
    assert indivisible(TensorType.parse("f32[batch, vocab=16]"), RULES, MESH) == ()
