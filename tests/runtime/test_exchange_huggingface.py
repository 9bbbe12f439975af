"""Checkpoint folders in and out: transformers reads ours, we read theirs, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planform.backends.reference import run
from planform.compiler.elaborate import elaborate
from planform.runtime import tensor_files
from planform.runtime.errors import UserError
from planform.runtime.exchange import export_folder, import_folder
from planform.runtime.exchange.huggingface import fit
from planform.runtime.run import parameters_of_run, read_run, spec_of_run
from planform.runtime.tensor_files import TensorFolder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIG: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "intermediate_size": 40, "sliding_window": 5, "query_pre_attn_scalar": 24,
}  # fmt: skip


def model(dtype: Any = torch.bfloat16, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.Gemma2Config(**{**CONFIG, **changes}, attn_implementation="eager")
    return transformers.Gemma2ForCausalLM(config).to(dtype).eval()


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    model().save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    (tmp_path / "hf" / "tokenizer.json").write_text("{}")
    return tmp_path / "hf"


def bits(folder: Path) -> dict[str, tuple[str, bytes]]:
    return {name: (str(a.dtype), a.tobytes()) for name, a in TensorFolder(folder).items()}


def test_round_trip_is_bit_identical(theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, "SHARD", 30_000)
    ours = import_folder(theirs, "gemma2", tmp_path / "ours")
    assert len(list((ours / "weights").glob("*.safetensors"))) > 1
    back = export_folder(
        spec_of_run(ours),
        parameters_of_run(ours),
        tmp_path / "back",
        imported=read_run(ours)["imported"],
        companions=ours / "tokenizer",
    )
    assert bits(back) == bits(theirs)
    assert (back / "tokenizer.json").exists()
    again = transformers.Gemma2ForCausalLM.from_pretrained(back)
    assert again.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model().state_dict().values()))


def test_logits_of_an_imported_checkpoint(tmp_path: Path) -> None:
    m = model(torch.float64, num_hidden_layers=4)
    with torch.no_grad():
        for p in m.parameters():
            p.normal_(0, 0.6)
    m.save_pretrained(tmp_path / "hf")
    ours = import_folder(tmp_path / "hf", "gemma2", tmp_path / "ours")
    tokens = np.random.default_rng(0).integers(0, 50, (2, 17))
    with torch.no_grad():
        want = m(input_ids=torch.tensor(tokens), use_cache=False).logits.numpy()
    got = run(elaborate(spec_of_run(ours)), parameters_of_run(ours), {"tokens": tokens})["logits"]
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)


def test_a_known_size_is_recognised(tmp_path: Path) -> None:
    from planform.compiler.weights import weights_map
    from planform.spec import load

    nine = load("gemma2", "9b")
    spec, overrides, _ = fit("gemma2", weights_map(nine, "huggingface").config.of_spec())
    assert (spec.size, overrides) == ("9b", [])


def rewrite_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"final_logit_softcapping": None}, "final_logit_softcapping"),
        ({"layer_types": ["full_attention"] * 5}, "layer_types"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": 26}, r"wrong shape: model.norm.weight is \[24\], expected \[26\]"),
        (
            {"num_hidden_layers": 6, "layer_types": ["sliding_attention", "full_attention"] * 3},
            "missing: model.layers.5",
        ),
        ({"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}, "extra: model.layers.4"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(
    theirs: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    rewrite_config(theirs, **changes)
    with pytest.raises(UserError, match=message):
        import_folder(theirs, "gemma2", tmp_path / "ours")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


def test_damage_is_told(theirs: Path, tmp_path: Path) -> None:
    file = sorted(theirs.glob("*.safetensors"))[1]
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is damaged"):
        import_folder(theirs, "gemma2", tmp_path / "ours")
    file.unlink()
    with pytest.raises(UserError, match=f"lacks {file.name}"):
        import_folder(theirs, "gemma2", tmp_path / "ours")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    (tmp_path / "pickled" / "config.json").write_text((theirs / "config.json").read_text())
    with pytest.raises(UserError, match=r"no \.safetensors"):
        import_folder(tmp_path / "pickled", "gemma2", tmp_path / "ours")


def test_an_existing_folder_is_left_alone(theirs: Path, tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    with pytest.raises(UserError, match="exists already"):
        import_folder(theirs, "gemma2", tmp_path / "ours")
