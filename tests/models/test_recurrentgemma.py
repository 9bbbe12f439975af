"""RecurrentGemma from its spec: counts, facts, its authors' code, and transformers' where that is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planform.backends.reference import run
from planform.compiler.elaborate import elaborate
from planform.compiler.ops.attention import Attend, Rope
from planform.compiler.ops.recurrence import Conv1d, LinearRecurrence, LogDecay
from planform.compiler.parameters import count, initial
from planform.runtime.exchange import import_folder
from planform.runtime.exporting import export_checkpoint
from planform.runtime.run import parameters_of_run, spec_of_run
from planform.runtime.tensor_files import TensorFolder
from planform.spec import load

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# In all, and outside the embedding.
COUNTS = {"2b": (2_682_862_080, 2_027_502_080), "9b": (8_579_977_216, 7_531_401_216)}
LAYERS = {"2b": (18, 8), "9b": (26, 12)}  # recurrent, attention


@pytest.mark.parametrize("size", COUNTS)
def test_counts_and_facts(size: str) -> None:
    graph = elaborate(load("recurrentgemma", size))
    table = next(p for p in graph.parameters if p.path == "table")
    assert (count(graph), count(graph) - int(np.prod(table.type.shape({})))) == COUNTS[size]
    recurrent, attention = LAYERS[size]
    paths = list(initial_names(graph))
    assert sum(p.endswith("log_decay.rate") for p in paths) == recurrent
    assert sum(p.endswith("attention.query.weight") for p in paths) == attention
    ops = [n.op for n in graph.walk()]
    assert all(o.window == 2049 and o.softcap is None and o.scale == 256**-0.5 for o in ops if isinstance(o, Attend))
    assert all(o.fraction == 0.5 for o in ops if isinstance(o, Rope))
    assert all(o.width == 4 and o.bias for o in ops if isinstance(o, Conv1d))
    assert all(o.normalise for o in ops if isinstance(o, LinearRecurrence))
    assert all(o.c == 8 for o in ops if isinstance(o, LogDecay))


def initial_names(graph: Any) -> list[str]:
    from planform.compiler.parameters import layers

    return [name for p in graph.parameters for name in layers(p.path)]


def test_decays_start_in_the_ring() -> None:
    """exp(-softplus(rate)) is a radius between 0.9 and 0.999, and more often a large one."""
    graph = elaborate(load("recurrentgemma", "small"))
    rates = np.concatenate([v for k, v in initial(graph.parameters).items() if k.endswith("log_decay.rate")])
    radius = np.exp(-np.logaddexp(0, rates.astype(np.float64)))
    assert 0.9 <= radius.min() < 0.91 and 0.99 < radius.max() <= 0.999
    # Even in area: the square of the radius has the mean of its ends.
    assert abs(np.mean(radius**2) - (0.9**2 + 0.999**2) / 2) < 0.006


CONFIG: dict[str, Any] = {
    "num_hidden_layers": 5, "vocab_size": 50, "hidden_size": 72, "intermediate_size": 192, "num_key_value_heads": 1,
    "lru_width": 72, "attention_window_size": 16,
}  # fmt: skip


@pytest.mark.parametrize(("heads", "head_dim"), [(4, 16), (2, 32)])
def test_equals_transformers_where_that_is_right(heads: int, head_dim: int, tmp_path: Path) -> None:
    """Up to one window: beyond it, transformers attends further back than the model that was trained."""
    torch.manual_seed(0)
    config = transformers.RecurrentGemmaConfig(
        **CONFIG, num_attention_heads=heads, head_dim=head_dim, attn_implementation="eager"
    )
    model = transformers.RecurrentGemmaForCausalLM(config).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.4)
    model.save_pretrained(tmp_path / "hf")
    ours = import_folder(tmp_path / "hf", "recurrentgemma", tmp_path / "ours")
    tokens = np.random.default_rng(0).integers(0, 50, (2, 16))
    with torch.no_grad():
        want = model(input_ids=torch.tensor(tokens), use_cache=False).logits.numpy()
    got = run(elaborate(spec_of_run(ours)), parameters_of_run(ours), {"tokens": tokens})["logits"]
    assert np.abs(want).max() > 5
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)

    back = export_checkpoint(ours, tmp_path / "back", "huggingface")
    a, b = TensorFolder(tmp_path / "hf"), TensorFolder(back)
    assert set(a) - set(b) <= {"model.normalizer"} and all(a[n].tobytes() == b[n].tobytes() for n in b)
    assert transformers.RecurrentGemmaForCausalLM.from_pretrained(back).config.lru_width == 72


def test_equals_its_authors_code() -> None:
    """Past two windows, in packed documents, an LRU wider than the model, another number of blocks than of heads."""
    pytest.importorskip("recurrentgemma")
    from tests.evidence.recurrentgemma import theirs
    from tests.evidence.recurrentgemma.b_parity import given

    m = theirs.model("d=32", "lru=48", "heads=4", "head_dim=8", "dims.blocks=2", "layers=3", "window=5", "vocab=60")
    inputs = given(m)
    assert inputs["tokens"].shape[1] > 2 * 5 and {0, 3, 5} <= set(np.flatnonzero(inputs["position"][1] == 0))
    want = theirs.jax_logits(m, inputs)
    assert np.abs(want).max() > 5
    np.testing.assert_allclose(run(m.graph, m.parameters, inputs)["logits"], want, atol=1e-4, rtol=0)
