"""The same text as transformers', token by token across the window, and what choosing a token costs."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from planform.runtime.exchange import import_folder
from planform.runtime.exporting import export_run
from planform.runtime.generation.model import open_decoder
from planform.runtime.generation.sampling import Sampling, sample
from planform.runtime.generation.writing import Rows
from tests.evidence import row

from .a_parity import BASE, SHAPES, checkpoint

TOKENS = 64
WINDOWS: dict[str, dict[str, Any]] = {
    **SHAPES,
    "a window of 5, shorter than the prompts": {"sliding_window": 5},
    "a window of 1: the entry itself": {"sliding_window": 1},
}
PROMPTS = (7, 1, 40)
"""Entries of the prompts; they are one batch."""


def talkative(folder: Path, **config: Any) -> Any:
    """A random model whose layers say more than its tied embedding, which alone would repeat the last token."""
    import torch

    model = checkpoint(folder, **config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "post" in name:
                p.add_(12)
    model.save_pretrained(folder, max_shard_size="200KB")
    return model


@row(
    "gemma2",
    "tokens",
    f"{TOKENS} greedy tokens identical to transformers', step by step past 3 windows, XLA and ONNX",
    3,
)
def tokens() -> tuple[Any, bool]:
    import torch

    figure: dict[str, Any] = {}
    holds = True
    for name, config in WINDOWS.items():
        with tempfile.TemporaryDirectory() as scratch:
            model = talkative(Path(scratch) / "hf", **config)
            model.generation_config.eos_token_id = None  # all of them, whatever they are
            rng = np.random.default_rng(2)
            prompts = [rng.integers(0, BASE["vocab_size"], n) for n in PROMPTS]
            theirs, margin = [], np.inf
            for ids in prompts:
                with torch.no_grad():
                    # Without its cache, which keeps every entry where the window is 1.
                    whole = model.generate(
                        torch.tensor(ids)[None], max_new_tokens=TOKENS, do_sample=False, use_cache=False
                    )
                    logits = model(input_ids=whole, use_cache=False).logits[0, len(ids) - 1 : -1]
                top = logits.topk(2).values
                margin = min(margin, float((top[:, 0] - top[:, 1]).min()))
                theirs.append(whole[0, len(ids) :].tolist())
            ours = import_folder(Path(scratch) / "hf", "gemma2", Path(scratch) / "ours")
            export_run(ours, Path(scratch) / "onnx", positions=128)
            same = {}
            for engine, folder in (("xla", ours), ("onnx", Path(scratch) / "onnx")):
                written: list[list[int]] = [[] for _ in prompts]
                for r, token in Rows(open_decoder(folder), prompts, TOKENS, Sampling(temperature=0)):
                    if token is not None:
                        written[r].append(token)
                same[engine] = sum(a == b for x, y in zip(written, theirs, strict=True) for a, b in zip(x, y))
                holds &= written == theirs
            window = config.get("sliding_window", BASE["sliding_window"])
            holds &= 3 * window < TOKENS
            different = min(len(set(ids)) for ids in theirs)
            holds &= different >= TOKENS // 3
            figure[name] = {
                "window": window, "identical": same, "of": TOKENS * len(prompts), "different_tokens": different,
                "closest_call": float(f"{margin:.1e}"),
            }  # fmt: skip
    return figure, holds


@row("gemma2", "sampling", "a token of 256,000 chosen in at most 5 ms of one core, whatever the way", 0.2)
def sampling() -> tuple[Any, bool]:
    """Logits like a trained model's: a few likely tokens over a wide tail. CPU time of the median call."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2.5, (1, 256_000)).astype(np.float32)
    logits[0, rng.integers(0, 256_000, 40)] += 12
    seen = np.zeros(logits.shape, bool)
    seen[0, rng.integers(0, 256_000, 2000)] = True
    ways = {
        "greedy": Sampling(temperature=0),
        "temperature": Sampling(temperature=0.8),
        "top-k 50": Sampling(temperature=0.8, top_k=50),
        "top-p 0.95": Sampling(temperature=0.8, top_p=0.95),
        "top-k 50, top-p 0.95, penalty": Sampling(temperature=0.8, top_k=50, top_p=0.95, repetition_penalty=1.1),
    }
    figure = {}
    for name, how in ways.items():
        taken = []
        for step in range(40):
            start = time.process_time()
            sample(logits, how, step, seen)
            taken.append(time.process_time() - start)
        figure[name] = round(1000 * float(np.median(taken)), 2)
    return {"milliseconds": figure}, max(figure.values()) <= 5
