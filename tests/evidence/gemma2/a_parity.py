"""The same logits as transformers, from the checkpoint's own folder, and the same checkpoint back."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from planform.backends import onnx, xla
from planform.compiler.elaborate import elaborate
from planform.runtime.exchange import import_folder
from planform.runtime.exporting import export_checkpoint, export_run
from planform.runtime.run import parameters_of_run, spec_of_run
from planform.runtime.tensor_files import TensorFolder
from tests.evidence import row

SHAPES: dict[str, dict[str, Any]] = {
    "2 queries a key head, head_dim unlike d / heads": {},
    "8 queries share one key head": {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 16},
    "a key head each, an odd number of layers": {
        "num_key_value_heads": 4, "num_hidden_layers": 5, "intermediate_size": 72,
    },
    "27b's scale: (d / heads) ^ -0.5, not head_dim ^ -0.5": {
        "hidden_size": 72, "num_attention_heads": 4, "num_key_value_heads": 2, "query_pre_attn_scalar": 18,
    },
}  # fmt: skip
BASE: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "intermediate_size": 96, "sliding_window": 16, "query_pre_attn_scalar": 32,
}  # fmt: skip
TIME = 45  # over two windows


def checkpoint(folder: Path, dtype: str = "float32", **config: Any) -> Any:
    """A random Gemma 2 of transformers, weights wide enough that both caps bend, saved in a folder; the model."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    model = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**{**BASE, **config}, attn_implementation="eager"))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.35 if p.ndim > 1 else 0.3)
    model = model.to(getattr(torch, dtype)).eval()
    model.save_pretrained(folder, max_shard_size="200KB")
    return model


@row(
    "gemma2", "logits", "within 1e-4 of transformers' (eager, float32), several shapes, XLA and ONNX, past 2 windows", 1
)
def logits() -> tuple[Any, bool]:
    import jax
    import torch

    figure: dict[str, Any] = {}
    for name, config in SHAPES.items():
        with tempfile.TemporaryDirectory() as scratch:
            model = checkpoint(Path(scratch) / "hf", **config)
            tokens = np.random.default_rng(1).integers(0, 300, (2, TIME)).astype(np.int32)
            with torch.no_grad():
                want = model(input_ids=torch.tensor(tokens.astype(np.int64)), use_cache=False).logits.numpy()
            ours = import_folder(Path(scratch) / "hf", "gemma2", Path(scratch) / "ours")
            graph, parameters = elaborate(spec_of_run(ours)), parameters_of_run(ours)
            policy = xla.Policy()
            stored = xla.from_logical(lambda n, p=parameters: p[n], graph, policy)
            by_xla = np.asarray(jax.jit(xla.lower(graph, policy))(stored, {"tokens": tokens})["logits"])
            export_run(ours, Path(scratch) / "onnx", positions=64)
            session = onnx.Session(Path(scratch) / "onnx")
            session.reset(2, 64)
            # A prompt across the window, and on token by token: the artefact gives the last entry's logits.
            by_onnx = [session.advance(tokens[:, :20])]
            by_onnx += [session.advance(tokens[:, t : t + 1]) for t in range(20, TIME)]
            figure[name] = {
                "largest": round(float(np.abs(want).max()), 1),
                "xla": float(f"{np.abs(by_xla - want).max():.2e}"),
                "onnx": float(f"{np.abs(np.concatenate(by_onnx, 1) - want[:, 19:]).max():.2e}"),
            }
    worst = max(max(f["xla"], f["onnx"]) for f in figure.values())
    bent = min(f["largest"] for f in figure.values()) > 15  # of a cap of 30
    return figure, worst <= 1e-4 and bent


@row("gemma2", "round_trip", "folder -> planform -> folder: every tensor bit-identical; transformers loads it", 0.5)
def round_trip() -> tuple[Any, bool]:
    import transformers

    figure: dict[str, Any] = {}
    holds = True
    for dtype in ("bfloat16", "float32"):
        with tempfile.TemporaryDirectory() as scratch:
            theirs = Path(scratch) / "hf"
            model = checkpoint(theirs, dtype)
            ours = import_folder(theirs, "gemma2", Path(scratch) / "ours")
            back = export_checkpoint(ours, Path(scratch) / "back", "huggingface")
            a, b = TensorFolder(theirs), TensorFolder(back)
            equal = [n for n in a if n in b and a[n].dtype == b[n].dtype and a[n].tobytes() == b[n].tobytes()]
            again = transformers.Gemma2ForCausalLM.from_pretrained(back)
            loaded = sum(bool((x == y).all()) for x, y in zip(model.state_dict().values(), again.state_dict().values()))
            mine, given = (json.loads((f / "config.json").read_text()) for f in (back, theirs))
            config = all(mine.get(k) == v for k, v in given.items())
            figure[dtype] = {"tensors": len(a), "identical": len(equal), "loaded_equal": loaded, "config_kept": config}
            holds &= len(equal) == len(a) == len(b) and loaded == len(model.state_dict()) and config
    return figure, holds
