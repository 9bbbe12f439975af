"""Meshes: reading, checking against a spec, shares of a batch."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from tests.runtime.training import SPEC

from planform.compiler.program import program
from planform.runtime.errors import UserError
from planform.runtime.mesh import check_mesh, default_axes, make_mesh, mesh_text, parse_mesh, rules_of, share_of
from planform.spec import SpecError, load_text


def loaded(*overrides):
    spec = load_text(SPEC, overrides=overrides)
    return spec, [u.loss for u in program(spec).updates]


@pytest.mark.parametrize("text, axes", [
    ("data=2", {"data": 2}),
    ("data=2,fsdp=4", {"data": 2, "fsdp": 4}),
    (" tensor = 2 , data=1 ", {"tensor": 2, "data": 1}),
])  # fmt: skip
def test_parse(text, axes):
    found = parse_mesh(text)
    assert list(found.items()) == list(axes.items())
    assert parse_mesh(mesh_text(found)) == found


@pytest.mark.parametrize(
    "text", ["", "data", "data=", "data=0", "data=-2", "data=two", "2=data", "data=2,data=2", "data=2;"]
)
def test_parse_refuses(text):
    with pytest.raises(UserError) as fault:
        parse_mesh(text)
    assert fault.value.help


def test_accepts_what_divides():
    spec, graphs = loaded()
    check_mesh(spec, graphs, {"data": 2, "fsdp": 2, "tensor": 2}, 8, 2)


def test_indivisible_dims_are_told_together():
    spec, graphs = loaded("heads=6", "kv_heads=3", "ff=33")
    with pytest.raises(SpecError) as fault:
        check_mesh(spec, graphs, {"tensor": 2}, 8)
    found = fault.value.diagnostics
    assert {d.code for d in found} == {"PF0402"}
    assert {d.message.split("`")[1] for d in found} == {"kv_heads", "ff"}
    for d in found:
        assert d.span.source.line(d.span.line).startswith("sharding:")
        assert d.span.text == d.message.split("`")[1]


@pytest.mark.parametrize("axes, batch, accumulate, said", [
    ({"data": 3}, 8, 1, "batch of 8"), ({"data": 2, "fsdp": 2}, 8, 4, "batch of 8"), ({"pipe": 2}, 8, 1, "`pipe`"),
])  # fmt: skip
def test_what_cannot_work_is_refused(axes, batch, accumulate, said):
    spec, graphs = loaded()
    with pytest.raises(UserError, match=said):
        check_mesh(spec, graphs, axes, batch, accumulate)


def test_an_axis_of_one_needs_no_rule():
    spec, graphs = loaded()
    check_mesh(spec, graphs, {"pipe": 1}, 8)


def test_a_spec_without_sharding_is_split_over_data():
    text = "\n".join(line for line in SPEC.splitlines() if not line.startswith("sharding:"))
    assert rules_of(load_text(text)) == (("batch", ("data",)),)
    assert ("batch", ("data",)) not in rules_of(loaded()[0])


def test_too_few_devices():
    with pytest.raises(UserError, match="has 64 devices"):
        make_mesh({"data": 64})


def test_default_divides_the_batch_and_fits_memory():
    there = jax.device_count()
    assert default_axes(there) == {"data": there}
    assert default_axes(7 * there, accumulate=7 * there) == {"data": 1}
    assert default_axes(there, state_bytes=1 << 60) == {"data": 1}


def test_the_share_of_one_process_is_everything():
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    share = share_of(mesh, (("batch", ("data",)),), 8)
    assert (share.batch, share.process, share.of) == (8, 0, 1)
