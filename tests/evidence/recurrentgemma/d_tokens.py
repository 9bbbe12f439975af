"""The same text as google-deepmind's sampler, token by token across the window."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.evidence import row

from . import theirs

TOKENS = 128
BATCHES = ((7, 40, 5), (1,), (3,))
"""Entries of the prompts that are written at once. In a batch with longer ones theirs takes none below 4: it fills such
a row up in front, and its convolution, once it runs on its state, sees what it was filled with."""

SHAPES = {
    "lru wider than d, window 16": ("d=64", "lru=96", "heads=4", "head_dim=16", "layers=5", "window=16"),
    "8 blocks for 2 heads, a window of 5, shorter than the prompts": (
        "d=48", "lru=64", "heads=2", "head_dim=24", "dims.blocks=8", "layers=4", "window=5",
    ),
    "a window of 1": ("d=48", "lru=48", "heads=4", "head_dim=12", "layers=6", "window=1"),
}  # fmt: skip


class Words:
    """A vocabulary as their sampler takes one, of texts that are the ids themselves."""

    def EncodeAsIds(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def DecodeIds(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        return 2

    def eos_id(self) -> int:
        return 1

    def pad_id(self) -> int:
        return 0


def talkative(*shape: str) -> theirs.Model:
    """A random model whose layers say more than its tied embedding, which alone would repeat the last token."""
    m = theirs.model(*shape, "vocab=300", "intermediate=160")
    louder = {n: a * 5 if n.endswith(("linear_out/kernel", "proj_final/kernel", "ffw_down/kernel")) else a
              for n, a in m.flat.items()}  # fmt: skip
    return replace(m, flat=louder)


def sampled(m: theirs.Model, prompts: list[np.ndarray]) -> tuple[list[list[int]], float]:
    """(the tokens that theirs writes, how near the closest second choice was)."""
    import jax.numpy as jnp
    from recurrentgemma import jax as rg
    from recurrentgemma.jax import modules

    with theirs.own_blocks(m, modules):
        net = rg.Griffin(theirs.config(m), gradient_checkpointing=False)
        sampler = rg.Sampler(net, Words(), theirs.tree({k: jnp.asarray(v) for k, v in m.flat.items()}))
        texts = [" ".join(map(str, ids[1:])) for ids in prompts]  # theirs puts bos before
        # Without `echo` it cuts as much off the front of a row as that was filled up.
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # it gives away what can't be used again
            found = sampler(texts, TOKENS, echo=True, return_logits=True, end_sampling_at_eos_token=False)
    top = [np.sort(np.asarray(x[-TOKENS:]), -1)[..., -2:] for x in found.logits]
    return [t[-TOKENS:].tolist() for t in found.tokens], min(float((t[..., 1] - t[..., 0]).min()) for t in top)


@row("recurrentgemma", "tokens", f"{TOKENS} greedy tokens identical to google-deepmind's sampler, XLA and ONNX", 2)
def tokens() -> tuple[Any, bool]:
    from planform.runtime.exchange import import_folder
    from planform.runtime.exporting import export_run
    from planform.runtime.generation.model import open_decoder
    from planform.runtime.generation.sampling import Sampling
    from planform.runtime.generation.writing import Rows

    figure: dict[str, Any] = {}
    holds = True
    for name, shape in SHAPES.items():
        m = talkative(*shape)
        with tempfile.TemporaryDirectory() as scratch:
            there = theirs.save(m, Path(scratch) / "theirs")
            ours = import_folder(there, "recurrentgemma@small", Path(scratch) / "ours", m.overrides)
            export_run(ours, Path(scratch) / "onnx", positions=256)
            rng = np.random.default_rng(2)
            same = {"xla": 0, "onnx": 0}
            margin, different, total = np.inf, TOKENS, 0
            for sizes in BATCHES:
                prompts = [np.concatenate([[Words().bos_id()], rng.integers(3, 300, n - 1)]) for n in sizes]
                want, closest = sampled(m, prompts)
                for engine, folder in (("xla", ours), ("onnx", Path(scratch) / "onnx")):
                    written: list[list[int]] = [[] for _ in prompts]
                    for r, token in Rows(open_decoder(folder), prompts, TOKENS, Sampling(temperature=0)):
                        if token is not None:
                            written[r].append(token)
                    same[engine] += sum(a == b for x, y in zip(written, want, strict=True) for a, b in zip(x, y))
                    holds &= written == want
                margin, total = min(margin, closest), total + TOKENS * len(prompts)
                different = min(different, *(len(set(w)) for w in want))
        holds &= different >= TOKENS // 6
        figure[name] = {
            "identical": same, "of": total, "different_tokens": different, "closest_call": float(f"{margin:.1e}"),
        }  # fmt: skip
    return figure, holds
