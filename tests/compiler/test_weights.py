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
    return weights_map(spec, [elaborate(spec)])


def test_every_parameter_goes_out_and_comes_back() -> None:
    found = read()
    values = initial(elaborate(load("gemma2", "small", SMALL)).parameters)
    assert set(values) == {t.parameter for t in found.tensors}
    for name, t in found.by_name().items():
        theirs = t.to_theirs(values[t.parameter])
        assert theirs.shape == t.their_shape, name
        np.testing.assert_array_equal(t.to_ours(theirs), values[t.parameter])
    query = found.by_name()["model.layers.4.self_attn.q_proj.weight"]
    assert query.parameter == "lm.layer[4].attend.attention.query.weight"
    w = values[query.parameter]
    np.testing.assert_array_equal(query.to_theirs(w), w.reshape(24, 32).T)


def test_sizes_come_from_their_config() -> None:
    config = read().their_config()
    assert config["layer_types"] == ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]
    assert read().dims({**config, "hidden_size": 48})["d"] == 48


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
        read().dims({**read().their_config(), **change})


def test_a_missing_field_is_named() -> None:
    config = read().their_config()
    del config["intermediate_size"]
    with pytest.raises(ValueError, match="`intermediate_size`, which sets ff, is missing"):
        read().dims(config)


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("      lm.norm.rms_norm.scale: model.norm.weight\n", "", "PF0603"),
        ("mlp.up_proj.weight", "mlp.gate_proj.weight", "PF0602"),
        ("feed.glu.up.weight: ", "feed.glu.upp.weight: ", "PF0604"),
        ("ff d -> d ff", "ff d -> ff d", "PF0605"),
        ("model.layers.*.input_layernorm", "model.layers.0.input_layernorm", "PF0601"),
    ],
)
def test_a_map_that_is_no_bijection_is_refused(old: str, new: str, code: str) -> None:
    assert old in TEXT
    with pytest.raises(SpecError) as caught:
        read(TEXT.replace(old, new, 1))
    assert code in [d.code for d in caught.value.diagnostics], str(caught.value)
