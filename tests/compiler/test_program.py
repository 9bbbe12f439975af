"""Selectors of a training program."""

import pytest
from tests.runtime.training import SPEC

from planform.compiler.program import program, selects
from planform.spec import SpecError, load_text


@pytest.fixture(scope="module")
def parameters():
    return program(load_text(SPEC, overrides=["layers=5"])).updates[0].loss.parameters


@pytest.mark.parametrize("selector, meant", [
    ("lm", lambda p: p.startswith("lm.")),
    ("table", lambda p: p == "table"),
    ("tab", lambda p: False),
    ("lm.layer", lambda p: ".layer[" in p),
    ("lm.layer[3]", lambda p: ".layer[1:" in p or ".layer[3" in p),  # of the stack of odd layers
    ("lm.layer[9]", lambda p: False),
    ("lm.layer*.feed.*", lambda p: ".feed." in p),
    ("*.scale", lambda p: p.endswith(".scale")),
    ("kind:vector", lambda p: p.endswith(".scale")),
    ("kind:matrix", lambda p: not p.endswith(".scale")),
    ("kind:vektor", lambda p: False),
])  # fmt: skip
def test_selects(parameters, selector, meant):
    for p in parameters:
        assert selects(selector, p) == meant(p.path), p.path


@pytest.mark.parametrize("change, text", [
    (("clip=1.0", 'clip=1.0, decay="kind:matrices"'), "kind:matrices"),
    (("  batch: 8", "  params: lm.layers\n  batch: 8"), "lm.layers"),
])  # fmt: skip
def test_a_selector_must_select(change, text):
    with pytest.raises(SpecError) as fault:
        program(load_text(SPEC.replace(*change)))
    (found,) = fault.value.diagnostics
    assert found.code == "PF0504" and f"`{text}`" in found.message and found.help
