"""Checkpoints in and out again: bit for bit, in both formats, and a tensor at a time."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from tests.evidence import row
from tests.evidence.gemma2.c_sizes import MB, peak

from . import theirs
from .b_parity import given, transformers_checkpoint

SHAPE = ("d=48", "lru=64", "heads=4", "head_dim=12", "layers=5", "window=16", "vocab=300", "intermediate=160")


def loaded(folder: Path) -> Any:
    """What their `load_parameters` makes of a folder. It expects of Orbax's `metadata` what that gave before 0.11."""
    import orbax.checkpoint as ocp
    from recurrentgemma import jax as rg

    class Reader(ocp.PyTreeCheckpointer):
        def metadata(self, directory: Any) -> Any:
            return super().metadata(directory).item_metadata.tree

    with mock.patch.object(ocp, "PyTreeCheckpointer", Reader):
        return rg.load_parameters(str(folder), "single_device")


def same_bits(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> int:
    """How many tensors are equal in name, dtype, shape and every bit."""
    return sum(n in b and (x.dtype, x.shape, x.tobytes()) == (b[n].dtype, b[n].shape, b[n].tobytes())
               for n, x in a.items())  # fmt: skip


@row(
    "recurrentgemma",
    "round_trip",
    "folder -> planform -> folder: every tensor bit-identical, both formats; each library loads it, with equal logits",
    1,
)
def round_trip() -> tuple[Any, bool]:
    figure: dict[str, Any] = {}
    for dtype in ("bfloat16", "float32"):
        with tempfile.TemporaryDirectory() as scratch:
            figure[f"deepmind, {dtype}"] = _deepmind(Path(scratch), dtype)
        with tempfile.TemporaryDirectory() as scratch:
            figure[f"huggingface, {dtype}"] = _huggingface(Path(scratch), dtype)
    holds = all(f["identical"] == f["tensors"] == f["back"] and f["logits_equal"] for f in figure.values())
    return figure, holds


def _deepmind(scratch: Path, dtype: str) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict

    from planform.runtime.exchange import import_folder
    from planform.runtime.exporting import export_checkpoint

    m = theirs.model(*SHAPE)
    there = theirs.save(m, scratch / "theirs", dtype)
    ours = import_folder(there, "recurrentgemma@small", scratch / "ours", m.overrides)
    back = export_checkpoint(ours, scratch / "back", "deepmind")
    a, b = (loaded(folder) for folder in (there, back))
    flat = [{k: np.asarray(v) for k, v in flatten_dict(t["params"], sep="/").items()} for t in (a, b)]
    run = jax.jit(lambda p: theirs.griffin(m, p, given(m)))
    logits = [run(jax.tree.map(jnp.asarray, t["params"])) for t in (a, b)]
    return {"tensors": len(flat[0]), "back": len(flat[1]), "identical": same_bits(*flat),
            "logits_equal": bool((logits[0] == logits[1]).all())}  # fmt: skip


def _huggingface(scratch: Path, dtype: str) -> dict[str, Any]:
    import torch
    import transformers

    from planform.runtime.exchange import import_folder
    from planform.runtime.exporting import export_checkpoint
    from planform.runtime.tensor_files import TensorFolder

    transformers_checkpoint(scratch / "theirs", 4, 16, 5, dtype)
    ours = import_folder(scratch / "theirs", "recurrentgemma", scratch / "ours")
    back = export_checkpoint(ours, scratch / "back", "huggingface")
    a, b = TensorFolder(scratch / "theirs"), TensorFolder(back)
    tokens = torch.arange(32)[None] * 7 % 300
    logits = []
    for folder in (scratch / "theirs", back):
        net = transformers.RecurrentGemmaForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        with torch.no_grad():
            logits.append(net(input_ids=tokens, use_cache=False).logits)
    return {"tensors": len(a), "back": len(b), "identical": same_bits(a, b),
            "logits_equal": bool((logits[0] == logits[1]).all())}  # fmt: skip


@row(
    "recurrentgemma",
    "import_memory",
    "a 2b Orbax folder (5 GB) goes in and out within 500 MB + 2 x its largest tensor",
    3,
)
def import_memory() -> tuple[Any, bool]:
    """Anonymous memory, without the files that are mapped; the folder is made in a process of its own."""
    from planform.runtime.exchange.orbax_folder import OrbaxFolder

    with tempfile.TemporaryDirectory(dir=Path.home()) as scratch:
        there = Path(scratch) / "theirs"
        subprocess.run([sys.executable, "-m", "tests.evidence.recurrentgemma.f_round_trip", str(there)], check=True)
        planform = [sys.executable, "-m", "planform"]
        most, seconds = peak([*planform, "import", str(there), "--spec", "recurrentgemma", "--out", f"{scratch}/ours"])
        back, back_seconds = peak(
            [*planform, "export", f"{scratch}/ours", "--to", "deepmind", "--out", f"{scratch}/back"]
        )
        a, b = OrbaxFolder(there), OrbaxFolder(Path(scratch) / "back")
        sizes = [2 * int(np.prod(a.shape(n))) for n in a]
        equal = len(a) == len(b) and all((a[n].view(np.uint16) == b[n].view(np.uint16)).all() for n in a)
    limit = 500 * MB + 2 * max(sizes)
    figure = {
        "checkpoint_mb": sum(sizes) // MB, "largest_tensor_mb": max(sizes) // MB, "limit_mb": limit // MB,
        "import": {"peak_mb": most // MB, "seconds": round(seconds, 1)},
        "export": {"peak_mb": back // MB, "seconds": round(back_seconds, 1)}, "identical": equal,
    }  # fmt: skip
    return figure, max(most, back) <= limit and equal and sum(sizes) > 5e9


def random_2b(folder: Path) -> None:
    """A 2b in bfloat16, made a tensor at a time, each in one piece as Orbax has them by default."""
    import ml_dtypes

    from planform.compiler.weights import weights_map
    from planform.runtime.exchange import orbax_folder
    from planform.spec import load

    noise = np.random.default_rng(0).standard_normal(1 << 22).astype(ml_dtypes.bfloat16)

    def drawn(i: int, shape: tuple[int, ...]) -> np.ndarray:
        return np.resize(np.roll(noise, i), int(np.prod(shape))).reshape(shape)

    folder.mkdir()
    weights = weights_map(load("recurrentgemma", "2b"), "deepmind")
    orbax_folder.CHUNK = 1 << 40
    orbax_folder.write_orbax(
        folder, {f"params/{t.name}": partial(drawn, i, t.shape) for i, t in enumerate(weights.tensors)}
    )


if __name__ == "__main__":
    random_2b(Path(sys.argv[1]))
