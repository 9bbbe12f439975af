"""Gemma 2 from its spec: counts of the paper, facts, and transformers' own implementation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from planform.backends.reference import run
from planform.compiler.elaborate import elaborate
from planform.compiler.ir import Graph
from planform.compiler.ops.attention import Attend
from planform.compiler.ops.norm import Softcap
from planform.compiler.parameters import count, initial
from planform.spec import load

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# arXiv:2408.00118, table 2 (embedding and other parameters; 256,000 rows are published).
OUTSIDE = {"2b": 2_024_517_888, "9b": 8_324_201_984, "27b": 26_047_480_320}
SIZES = {"2b": (26, 256), "9b": (42, 256), "27b": (46, 144)}  # layers, query scale


@pytest.mark.parametrize("size", OUTSIDE)
def test_counts_and_facts(size: str) -> None:
    spec = load("gemma2", size)
    graph = elaborate(spec)
    table = next(p for p in graph.parameters if p.path == "table")
    assert count(graph) - int(np.prod(table.type.shape({}))) == OUTSIDE[size]
    layers, scale = SIZES[size]
    repeat = next(n for n in graph.nodes if n.op.name == "repeat")
    assert 2 * repeat.op.count == layers  # type: ignore[attr-defined]
    attends = [n.op for n in graph.walk() if isinstance(n.op, Attend)]
    assert [a.window for a in attends] == [4096, None]  # local first
    assert all(a.softcap == 50 and a.causal and a.scale == scale**-0.5 for a in attends)
    assert [n.op.cap for n in graph.walk() if isinstance(n.op, Softcap)] == [30]


def small(**dims: int) -> Graph:
    return elaborate(load("gemma2", "small", [f"{k}={v}" for k, v in dims.items()]))


def in_transformers(graph: Graph, parameters: dict[str, np.ndarray], **config: object) -> object:
    """transformers' Gemma 2 with our parameters, float64."""
    model = transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(attn_implementation="eager", **config)
    ).eval().double()  # fmt: skip
    state = model.state_dict()
    with torch.no_grad():
        for name, array in parameters.items():
            state[theirs(name)].copy_(torch.tensor(reshaped(name, array)))
    return model


def theirs(name: str) -> str:
    ends = {
        "attend.pre.rms_norm.scale": "input_layernorm.weight",
        "attend.post.rms_norm.scale": "post_attention_layernorm.weight",
        "feed.pre.rms_norm.scale": "pre_feedforward_layernorm.weight",
        "feed.post.rms_norm.scale": "post_feedforward_layernorm.weight",
        "attend.attention.query.weight": "self_attn.q_proj.weight",
        "attend.attention.key.weight": "self_attn.k_proj.weight",
        "attend.attention.value.weight": "self_attn.v_proj.weight",
        "attend.attention.out.weight": "self_attn.o_proj.weight",
        "feed.glu.gate.weight": "mlp.gate_proj.weight",
        "feed.glu.up.weight": "mlp.up_proj.weight",
        "feed.glu.down.weight": "mlp.down_proj.weight",
    }
    if name in ("table", "lm.norm.rms_norm.scale"):
        return {"table": "model.embed_tokens.weight"}.get(name, "model.norm.weight")
    layer, _, rest = name.removeprefix("lm.layer[").partition("].")
    return f"model.layers.{layer}.{ends[rest]}"


def reshaped(name: str, array: np.ndarray) -> np.ndarray:
    if array.ndim == 1 or name == "table":
        return array
    rows = array.shape[0] * array.shape[1] if name.endswith("out.weight") else array.shape[0]
    return array.reshape(rows, -1).T


@pytest.mark.parametrize(
    ("heads", "kv", "dim", "d", "layers", "scale"), [(4, 2, 8, 24, 5, 24), (6, 1, 4, 12, 4, 144), (3, 3, 16, 21, 3, 16)]
)
def test_equals_transformers(heads: int, kv: int, dim: int, d: int, layers: int, scale: int) -> None:
    """Past two windows, caps driven into their bend, heads * head_dim unlike d, odd layer counts."""
    graph = small(
        vocab=50, window=5, d=d, layers=layers, heads=heads, kv_heads=kv, head_dim=dim, ff=40, query_scale=scale
    )
    rng = np.random.default_rng(0)
    parameters = {k: rng.normal(0, 1.2, v.shape) for k, v in initial(graph.parameters).items()}
    model = in_transformers(
        graph, parameters, vocab_size=50, hidden_size=d, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, head_dim=dim, intermediate_size=40, sliding_window=5, query_pre_attn_scalar=scale,
    )  # fmt: skip
    tokens = rng.integers(0, 50, (2, 17))
    with torch.no_grad():
        want = model(input_ids=torch.tensor(tokens), use_cache=False).logits.numpy()  # type: ignore[operator]
    got = run(graph, parameters, {"tokens": tokens})["logits"]
    assert np.abs(want).max() > 15  # the final cap of 30 bends
    # transformers computes norms and rotary angles in float32 whatever the weights are.
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("change", ["window=4", "blocks.norm=rms_norm(offset=0)", "query_scale=25", "layers=4"])
def test_the_comparison_notices(change: str) -> None:
    base = "vocab=50 window=5 d=24 layers=5 heads=4 kv_heads=2 head_dim=8 ff=40 query_scale=24"
    overrides = base.split()
    right, wrong = (
        elaborate(load("gemma2", "small", overrides)),
        elaborate(load("gemma2", "small", [*overrides, change])),
    )
    rng = np.random.default_rng(0)
    parameters = {k: rng.normal(0, 0.6, v.shape) for k, v in initial(right.parameters).items()}
    tokens = rng.integers(0, 50, (2, 17))
    a, b = (run(g, parameters, {"tokens": tokens})["logits"] for g in (right, wrong))
    assert np.abs(a - b).max() > 1e-2


def test_the_spec_is_short() -> None:
    """Training aside, everything that makes Gemma 2 what it is stands in at most 45 lines."""
    text = Path(__file__).parents[2].joinpath("models/gemma2.yaml").read_text()
    assert len(text.partition("\ntrain:")[0].strip().splitlines()) <= 45
