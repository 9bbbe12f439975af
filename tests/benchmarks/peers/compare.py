"""Inference beside the peers: which contenders meet in which row, and what their rounds amount to."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from planform.backends.onnx.session import physical_cores

from ..ratios import interval, judged, together
from ..sizes import SIZES
from . import rounds
from .child import prompt
from .contenders import KINDS
from .models import Unavailable, built, default_folder, need, weight_bytes
from .probes import product_rate

Figure = dict[str, Any]
Outcome = tuple[Figure, bool | str]

AGREE = {"llama-f32": 0.05, "llama-f32-flash": 0.05}
"""How far a float32 contender's logits may be from transformers': llama.cpp keeps its caches in float16."""
AGREE_ELSE = 1e-3

LIBRARIES = ("torch", "onnxruntime")
"""Whose matrix products are taken for what the machine can give to a prompt: the faster one's."""
SMALL = "onnxruntime-int8"
"""The same in 8-bit integers: what they can gain at most on the processor that is there."""


@dataclass(frozen=True)
class Options:
    """rounds, size of the model, and where everything is kept; from the environment for rows of evidence."""

    rounds: int = field(default_factory=lambda: int(os.environ.get("PLANFORM_BENCH_ROUNDS", "9")))
    size: str = field(default_factory=lambda: os.environ.get("PLANFORM_BENCH_SIZE", "m300"))
    folder: Path = field(default_factory=default_folder)


@dataclass(frozen=True)
class Race:
    """One row of speed: `aim` times the fastest of the peers. What is fastest is decided by the medians.

    every  contenders known to be slow, which run in each n-th round only
    share  of the read bandwidth (decoding) that ours must reach besides
    """

    name: str
    what: str  # "decode" or "prefill"
    ours: tuple[str, ...]
    peers: tuple[str, ...]
    aim: float
    prompt: int = 512
    new: int = 32
    every: dict[str, int] = field(default_factory=dict)
    share: float | None = None


RACES = [
    Race(
        "decode_fp32", "decode", ("ours-f32", "ours-f32-mapped"),
        ("genai-f32", "llama-f32", "llama-f32-flash", "torch-f32", "jax-f32"),
        0.98, share=0.9, every={"llama-f32-flash": 3, "torch-f32": 3, "jax-f32": 4},
    ),
    Race(
        "decode_int4", "decode", ("ours-int4-kv8", "ours-int4"), ("genai-int4", "llama-q4_0", "llama-q4_0-flash"), 1.15,
        new=48, every={"llama-q4_0-flash": 3},
    ),
    Race(
        "decode_int8", "decode", ("ours-int8-kv8", "ours-int8", "ours-w8"), ("llama-q8_0", "llama-q8_0-flash"), 1.15,
        new=48, every={"ours-w8": 3, "llama-q8_0-flash": 3},
    ),
    Race(
        "decode_int4_4k", "decode", ("ours-int4-kv8", "ours-int4"), ("genai-int4",), 1.3, prompt=4096,
        every={"ours-int4": 3},
    ),
    Race(
        "prefill_fp32", "prefill", ("ours-f32",), ("genai-f32", "torch-f32", "llama-f32", "jax-f32"),
        1.05, new=0, every={"llama-f32": 3, "jax-f32": 4},
    ),
    Race(
        "prefill_int8", "prefill", ("ours-int8",),
        ("genai-f32", "torch-f32", "genai-int4", "llama-q4_0", "llama-q8_0"), 2.0, new=0,
        every={"torch-f32": 2, "genai-int4": 2, "llama-q8_0": 3, "llama-q4_0": 3},
    ),
]  # fmt: skip


def race(r: Race, options: Options) -> Outcome:
    """Runs it. Returns the figure and whether it holds."""
    size = SIZES[options.size]
    paths, missing = forms((*r.ours, *r.peers), options)
    ours, peers = ([n for n in names if n in paths] for names in (r.ours, r.peers))
    if not ours or not peers:
        return {"missing": missing}, "undecided"
    asked = ["--vocab", size.vocab, "--prompt", r.prompt, "--new", r.new, "--threads", physical_cores()]
    asked += ["--prompts", 2 if r.what == "prefill" else 1]
    runs = {name: partial(rounds.child, "child", name, paths[name], *asked) for name in (*ours, *peers)}
    if r.what == "prefill":
        runs |= {f"product-{n}": partial(_product, n) for n in (*LIBRARIES, SMALL)}
    found = rounds.interleaved(f"{r.name}-{options.size}", runs, options.rounds, options.folder, r.every)
    missing |= {name: str(row["error"]) for name, rows in found.items() for row in rows if "error" in row}
    speeds = {
        name: [(row["round"], _speed(r, row)) for row in found[name]]
        for name in (*ours, *peers)
        if found[name] and name not in missing
    }
    ours, peers = ([n for n in names if n in speeds] for names in (ours, peers))
    if not ours or not peers:
        return {"missing": missing}, "undecided"
    best, rival = (max(names, key=lambda n: _median(speeds[n])) for names in (ours, peers))
    ratio = interval(rounds.paired(speeds[best], speeds[rival]))
    figure: Figure = {
        "model": options.size, "prompt": r.prompt, "ours": best, "best peer": rival,
        "ratio": rounded(ratio), "tokens_s": {n: spread([s for _, s in v]) for n, v in speeds.items()},
    }  # fmt: skip
    verdicts = [judged(*ratio[1:], aim=r.aim)]
    if r.what == "decode":
        shares = {n: _shares(found[n], speeds[n], weight_bytes(paths[n])) for n in speeds}
        figure["read_gb_s"] = spread([row["bandwidth"] for n in speeds for row in found[n]])
        figure["of_bandwidth"] = {n: rounded(interval(v)) for n, v in shares.items()}
        if r.share:
            verdicts.append(judged(*interval(shares[best])[1:], aim=r.share))
    else:
        peaks = {n: [row["rate"] for row in found[f"product-{n}"] if "rate" in row] for n in LIBRARIES}
        peaks = {n: rates for n, rates in peaks.items() if rates}
        peak = max(map(_median_of, peaks.values()))
        figure["product_gflop_s"] = {n: spread(rates) for n, rates in peaks.items()}
        figure["int8_product_gop_s"] = spread([row["rate"] for row in found[f"product-{SMALL}"] if "rate" in row])
        figure["of_product_peak"] = {n: round(_median(v) * size.flops / 1e9 / peak, 3) for n, v in speeds.items()}
    figure["others' share of the processors"] = spread([row["others"] for rows in found.values() for row in rows])
    if all(n.endswith(("-f32", "-mapped", "-flash")) for n in speeds):
        figure["largest difference of logits"], equal = agreement(list(speeds), paths, options)
        verdicts.append(equal)
    if missing:
        figure["missing"] = missing
        verdicts.append("undecided")
    return figure, together(verdicts)


def forms(names: Iterable[str], options: Options) -> tuple[dict[str, Path], dict[str, str]]:
    """(the paths of the contenders' models, why one has none)."""
    paths: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for name in names:
        _, form, module = KINDS[name]
        try:
            if module:
                need(module)
            paths[name] = built(options.folder, options.size, form)
        except Unavailable as why:
            missing[name] = str(why)
    return paths, missing


def agreement(names: Sequence[str], paths: dict[str, Path], options: Options) -> tuple[dict[str, float], bool | str]:
    """(how far each one's logits after a prompt of 512, and 8 tokens more, are from transformers', whether that is
    near enough): all run the same model. Kept beside the models."""
    size = SIZES[options.size]
    texts = options.folder / options.size / "texts.npy"
    found = {}
    for name in dict.fromkeys(("torch-f32", *names)):
        kept = options.folder / options.size / f"logits-{name}.npy"
        if not kept.exists() and name in paths:
            np.save(texts, prompt(size.vocab, 520)[None])
            asked = ("--vocab", size.vocab, "--prompt", 512, "--threads", physical_cores())
            rounds.child("child", name, paths[name], *asked, "--texts", texts, "--logits", kept)
        if kept.exists():
            found[name] = np.load(kept)
    truth = found.pop("torch-f32", None)
    if truth is None:
        return {}, "undecided"
    off = {name: float(np.abs(logits - truth).max()) for name, logits in found.items()}
    equal = all(d <= AGREE.get(name, AGREE_ELSE) for name, d in off.items())
    return {name: float(f"{d:.1e}") for name, d in off.items()}, equal


MEMORY_GROUPS = (
    ("float32", ("ours-f32-mapped", "ours-f32"), ("genai-f32", "llama-f32", "torch-f32")),
    ("4 bits", ("ours-int4",), ("genai-int4", "llama-q4_0")),
)


def load_memory(options: Options) -> Outcome:
    """Seconds until a first token, and the process's peak memory after a prompt of 512 and 16 tokens."""
    size = SIZES[options.size]
    names = [n for _, ours, peers in MEMORY_GROUPS for n in (*ours, *peers)]
    paths, missing = forms(names, options)
    asked = ["--vocab", size.vocab, "--prompt", 512, "--new", 16, "--threads", physical_cores(), "--ready"]
    runs = {n: partial(rounds.child, "child", n, path, *asked) for n, path in paths.items()}
    every = {"torch-f32": 3}
    found = rounds.interleaved(f"load_memory-{options.size}", runs, options.rounds, options.folder, every)
    missing |= {n: str(row["error"]) for n, rows in found.items() for row in rows if "error" in row}
    figure: Figure = {"model": options.size}
    verdicts: list[bool | str] = []
    for group, ours, peers in MEMORY_GROUPS:
        here = [n for n in (*ours, *peers) if n in found and n not in missing]
        if not set(ours) & set(here) or not set(peers) & set(here):
            continue
        for title, key, scale in (("seconds to the first token", "ready_s", 1.0), ("peak memory, MB", "memory", 1e-6)):
            values = {n: [(row["round"], row[key] * scale) for row in found[n]] for n in here}
            rival = min((n for n in here if n in peers), key=lambda n: _median(values[n]))
            ratio = interval(rounds.paired(values[rival], values[ours[0]]))
            figure[f"{group}: {title}"] = {n: spread([v for _, v in vs]) for n, vs in values.items()}
            figure[f"{group}: {title}"]["best peer / ours"] = rounded(ratio)
            verdicts.append(judged(*ratio[1:], aim=1.0))
    if missing:
        figure["missing"] = missing
        verdicts.append("undecided")
    return figure, together(verdicts)


def _product(library: str) -> rounds.Result:
    return {"rate": product_rate(library, physical_cores())}


def _speed(r: Race, row: rounds.Result) -> float:
    """Tokens/s."""
    return rounds.speed(row, "step_s") if r.what == "decode" else rounds.speed(row, "prefill_s", r.prompt)


def _shares(rows: Sequence[rounds.Result], speeds: Sequence[tuple[int, float]], size: int) -> list[float]:
    """Of the bandwidth of its round, by the bytes of its weights."""
    return [speed * size / 1e9 / row["bandwidth"] for row, (_, speed) in zip(rows, speeds, strict=True)]


def _median(values: Sequence[tuple[int, float]]) -> float:
    return statistics.median(v for _, v in values)


def _median_of(values: Sequence[float]) -> float:
    return statistics.median(values)


def rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{v:.3g}") for v in values]


def spread(values: Sequence[float]) -> Any:
    """[median, lowest, highest]"""
    return rounded([statistics.median(values), min(values), max(values)])
