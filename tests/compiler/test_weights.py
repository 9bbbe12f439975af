"""The weights map: a bijection, checked with the spec, and true in both directions."""

from __future__ import annotations

import numpy as np
import pytest

from planform.compiler.elaborate import elaborate
from planform.compiler.parameters import initial
from planform.compiler.weights import WeightsMap, weights_map
from planform.spec import SpecError, load, load_text

SMALL = ["vocab=50", "window=5", "d=24", "layers=5", "heads=4", "kv_heads=2", "head_dim=8", "ff=40", "query_scale=24"]
TEXT = load("gemma2", "small").source.text


def read(text: str = TEXT, overrides: list[str] = SMALL) -> WeightsMap:
    spec = load_text(text, "gemma2.yaml", "small", overrides)
    return weights_map(spec, "huggingface")


def test_every_parameter_goes_out_and_comes_back() -> None:
    found = read()
    values = initial(elaborate(load("gemma2", "small", SMALL)).parameters)
    back = {}
    for t in found.tensors:
        theirs = t.to_theirs(values.__getitem__)
        assert theirs.shape == t.shape, t.name
        back.update(t.to_ours(theirs))
    assert set(values) == set(back)
    for name, array in back.items():
        np.testing.assert_array_equal(array, values[name])
    query = found.by_name()["model.layers.4.self_attn.q_proj.weight"]
    w = values["lm.layer[4].attend.attention.query.weight"]
    np.testing.assert_array_equal(query.to_theirs(values.__getitem__), w.reshape(24, 32).T)


def test_entries_of_one_tensor_go_apart_and_come_together() -> None:
    spec = load("recurrentgemma", "small", ["d=24", "lru=40", "heads=2", "head_dim=12", "intermediate=64", "vocab=50"])
    values = initial(elaborate(spec).parameters)
    found = weights_map(spec, "deepmind").by_name()
    up = found["blocks.4/mlp_block/ffw_up/w"]
    gate, other = (values[f"lm.layer[4].feed.glu.{n}.weight"] for n in ("gate", "up"))
    assert up.shape == (2, 24, 32)
    np.testing.assert_array_equal(up.to_theirs(values.__getitem__), np.stack([gate, other]))
    assert found["blocks.4/mlp_block/ffw_up/b"].shape == (2, 1, 1, 32)
    parts = {p: a for t in found.values() for p, a in t.to_ours(t.to_theirs(values.__getitem__))}
    assert set(parts) == set(values) and all(np.array_equal(parts[n], values[n]) for n in values)


def test_layers_in_one_tensor_go_apart_and_come_together() -> None:
    """As libraries have them that scan over their layers."""
    text = """\
planform: 1
model: stacked
dims: {vocab: 11, d: 6, ff: 8}
params:
  table: {shape: [vocab, d]}
graphs:
  lm:
    inputs:
      tokens: int[batch, time]
    body: logits = tokens >> embed(table) >> (id + glu(ff, silu)) ^ 3 >> unembed(table)
weights:
  scanned:
    tensors:
      table: table
      lm.layer[*].glu.gate.weight: layers/gate[*] >> "ff d -> d ff"
      lm.layer[*].glu.up.weight: layers/up[*]
      lm.layer[*].glu.down.weight: layers/down[*]
"""
    spec = load_text(text, "stacked.yaml")
    values = initial(elaborate(spec).parameters)
    found = weights_map(spec, "scanned").by_name()
    assert {n: t.shape for n, t in found.items()} == {
        "table": (11, 6), "layers/gate": (3, 8, 6), "layers/up": (3, 6, 8), "layers/down": (3, 8, 6)
    }  # fmt: skip
    gate = found["layers/gate"]
    stack = np.stack([values[f"lm.layer[{i}].glu.gate.weight"].T for i in range(3)])
    np.testing.assert_array_equal(gate.to_theirs(values.__getitem__), stack)
    for name, array in gate.to_ours(stack):
        np.testing.assert_array_equal(array, values[name])


def test_sizes_come_from_their_config() -> None:
    config = read().config.of_spec()
    assert config["layer_types"] == ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]
    assert read().config.dims({**config, "hidden_size": 48})["d"] == 48


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attn_logit_softcapping": None}, "`attn_logit_softcapping` is None, and gemma2 has 50.0 built in"),
        ({"hidden_activation": "gelu"}, "hidden_activation"),
        ({"layer_types": ["full_attention"] * 5}, "layer_types"),
        ({"hidden_size": "24"}, "`hidden_size` sets d"),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, "rope_parameters.rope_theta"),
    ],
)
def test_what_the_spec_cannot_express_is_refused_by_field(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("`", "`")):
        read().config.dims({**read().config.of_spec(), **change})


def test_a_missing_field_is_named() -> None:
    config = read().config.of_spec()
    del config["intermediate_size"]
    with pytest.raises(ValueError, match="`intermediate_size`, which sets ff, is missing"):
        read().config.dims(config)


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("      lm.norm.rms_norm.scale: model.norm.weight\n", "", "PF0613"),
        ("mlp.up_proj.weight", "mlp.gate_proj.weight", "PF0612"),
        ("feed.glu.up.weight: ", "feed.glu.upp.weight: ", "PF0614"),
        ("ff d -> d ff", "ff d -> ff d", "PF0615"),
        ("model.layers.*.input_layernorm", "model.layers.0.input_layernorm", "PF0611"),
    ],
)
def test_a_map_that_is_no_bijection_is_refused(old: str, new: str, code: str) -> None:
    assert old in TEXT
    with pytest.raises(SpecError) as caught:
        read(TEXT.replace(old, new, 1))
    assert code in [d.code for d in caught.value.diagnostics], str(caught.value)
