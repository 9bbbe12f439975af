"""Inference beside the peers: what the rounds of a row amount to."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
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
from .races import RACES, Race
from .rounds import Turn

Figure = dict[str, Any]
Outcome = tuple[Figure, bool | str]

USUAL = {"gemma2": "m300", "recurrentgemma": "rg-m300"}
"""The size of a family whose inference is measured."""

TRUTH = {"gemma2": "torch-f32", "recurrentgemma": "deepmind-f32"}
"""Whose logits the others' are compared with."""
AGREE = {"llama-f32": 0.05, "llama-f32-flash": 0.05}
"""How far a float32 contender's logits may be from those: llama.cpp keeps its caches in float16."""
AGREE_ELSE = 1e-3
IN_WINDOW = {("recurrentgemma", "torch-f32")}
"""Compared as long as nothing is outside the window: transformers' is shorter by an entry."""

LIBRARIES = ("torch", "onnxruntime")
"""Whose matrix products are taken for what the machine can give to a prompt: the faster one's."""
SMALL = "onnxruntime-int8"
"""The same in 8-bit integers: what they can gain at most on the processor that is there."""


@dataclass(frozen=True)
class Options:
    """The family, rounds, size of the model (None: the row's own), and where everything is kept; from the environment
    for rows of evidence, a size of another family aside."""

    spec: str = "gemma2"
    rounds: int = field(default_factory=lambda: int(os.environ.get("PLANFORM_BENCH_ROUNDS", "9")))
    size: str | None = field(default_factory=lambda: os.environ.get("PLANFORM_BENCH_SIZE"))
    folder: Path = field(default_factory=default_folder)

    def __post_init__(self) -> None:
        if self.size and SIZES[self.size].spec != self.spec:
            object.__setattr__(self, "size", None)

    @property
    def model(self) -> str:
        """The size whose inference is measured."""
        return self.size or USUAL[self.spec]


def race(name: str, options: Options) -> Outcome:
    """Runs a row of races.py. Returns the figure and whether it holds."""
    r = RACES[options.spec][name]
    paths, missing = forms({n: KINDS[n][1:] for n in r.contenders}, options)
    if not set(r.ours) & set(paths) or not set(r.peers) & set(paths):
        return {"missing": missing}, "undecided"
    count = options.rounds * r.turns
    asked: list[object] = ["--size", options.model, "--prompt", r.prompt, "--threads", physical_cores()]
    asked += ["--room", r.prompt + r.new * (count + 1) + 8]
    runs = {n: _turn(r, n, paths[n], *asked) for n in r.contenders if n in paths}
    if r.what == "prefill":
        runs |= {f"product-{n}": Turn("", "probes", n, physical_cores()) for n in (*LIBRARIES, SMALL)}
    with ExitStack() as stack:
        for turn in runs.values():
            stack.callback(turn.close)
        found = rounds.interleaved(runs, count, options.folder, r.every)
    missing |= {name: str(row["error"]) for name, rows in found.items() for row in rows if "error" in row}
    speeds = {
        name: [(row["round"], _speed(r, row)) for row in found[name]]
        for name in r.contenders
        if found.get(name) and name not in missing
    }
    ours, peers = ([n for n in names if n in speeds] for names in (r.ours, r.peers))
    if not ours or not peers:
        return {"missing": missing}, "undecided"
    best, rival = (max(names, key=lambda n: _median(speeds[n])) for names in (ours, peers))
    ratio = interval(rounds.paired(speeds[best], speeds[rival]))
    figure: Figure = {
        "model": options.model, "prompt": r.prompt, "ours": best, "best peer": rival, "ratio": rounded(ratio),
        "tokens_s": {n: spread([s for _, s in v]) for n, v in speeds.items()},
    }  # fmt: skip
    verdicts = [judged(*ratio[1:], aim=r.aim)]
    if r.what == "decode":
        shares = {n: _shares(found[n], speeds[n], weight_bytes(paths[n])) for n in speeds}
        for title, key in (("read_gb_s", "bandwidth"), ("read_gb_s, large pages", "in_large_pages")):
            figure[title] = spread([row[key] for n in speeds for row in found[n]])
        figure["of_bandwidth"] = {n: rounded(interval(v)) for n, v in shares.items()}
        if r.share:
            verdicts.append(judged(*interval(shares[best])[1:], aim=r.share))
    else:
        peaks = {n: [row["rate"] for row in found[f"product-{n}"] if "rate" in row] for n in LIBRARIES}
        peaks = {n: rates for n, rates in peaks.items() if rates}
        peak = max(map(statistics.median, peaks.values()))
        flops = SIZES[options.model].flops
        figure["product_gflop_s"] = {n: spread(rates) for n, rates in peaks.items()}
        figure["int8_product_gop_s"] = spread([row["rate"] for row in found[f"product-{SMALL}"] if "rate" in row])
        figure["of_product_peak"] = {n: round(_median(v) * flops / 1e9 / peak, 3) for n, v in speeds.items()}
    for title, key, scale in (("seconds to load", "load_s", 1.0), ("peak memory, MB", "memory", 1e-6)):
        figure[title] = {n: rounded([statistics.median(row[key] for row in found[n]) * scale])[0] for n in speeds}
    figure["others' share of the processors"] = spread([row["others"] for rows in found.values() for row in rows])
    if all(n.endswith(("-f32", "-mapped", "-flash")) for n in speeds):
        figure["largest difference of logits"], equal = agreement(list(speeds), paths, options)
        verdicts.append(equal)
    if r.refused:
        able, figure["can't run this model"] = forms({n: KINDS[n][1:] for n in r.refused}, options)
        missing |= dict.fromkeys(able, "it takes this model by now, and isn't measured")
    if missing:
        figure["missing"] = missing
        verdicts.append("undecided")
    return figure, together(verdicts)


def forms(wanted: Mapping[str, tuple[str, str]], options: Options) -> tuple[dict[str, Path], dict[str, str]]:
    """(the paths of the models by contender, why one has none); `wanted` gives each one's form and the module that it
    needs."""
    paths: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for name, (form, module) in wanted.items():
        try:
            if module:
                need(module)
            paths[name] = built(options.folder, options.model, form)
        except Unavailable as why:
            missing[name] = str(why)
    return paths, missing


def agreement(names: Sequence[str], paths: dict[str, Path], options: Options) -> tuple[dict[str, float], bool | str]:
    """(how far each one's logits after a prompt, and after each of some tokens more, are from the family's TRUTH,
    whether that is near enough): all run the same model. Kept beside the models."""
    size, truth = SIZES[options.model], TRUTH[options.spec]
    # For RecurrentGemma the tokens cross the window's end one by one.
    length, rest = (size.window - 16, 32) if options.spec == "recurrentgemma" else (512, 8)
    folder = options.folder / options.model
    texts = folder / "texts.npy"
    found = {}
    for name in dict.fromkeys((truth, *names)):
        kept = folder / f"logits-{name}.npy"
        if not kept.exists() and name in paths:
            np.save(texts, prompt(size.vocab, length + rest)[None])
            asked = ("--size", options.model, "--prompt", length, "--threads", physical_cores())
            rounds.once(name, paths[name], *asked, "--texts", texts, "--logits", kept)
        if kept.exists():
            found[name] = np.load(kept)
    expected = found.pop(truth, None)
    if expected is None:
        return {}, "undecided"
    inside = size.window - length + 1  # logits of entries that see all of the stream
    seen = {name: inside if (options.spec, name) in IN_WINDOW else None for name in found}
    off = {name: float(np.abs(logits - expected)[:, : seen[name]].max()) for name, logits in found.items()}
    equal = all(d <= AGREE.get(name, AGREE_ELSE) for name, d in off.items())
    return {name: float(f"{d:.1e}") for name, d in off.items()}, equal


MEMORY_GROUPS = (
    ("float32", ("ours-f32-mapped", "ours-f32"), ("genai-f32", "llama-f32", "torch-f32")),
    ("4 bits", ("ours-int4-prepared", "ours-int4"), ("genai-int4", "llama-q4_0")),
)


STARTS = 3
"""Starts of each contender in a round: one takes a fraction of a second, and varies."""


def load_memory(options: Options) -> Outcome:
    """Seconds until a first token, and the process's peak memory after a prompt of 512 and 16 tokens."""
    names = [n for _, ours, peers in MEMORY_GROUPS for n in (*ours, *peers)]
    paths, missing = forms({n: KINDS[n][1:] for n in names}, options)
    asked = ["--size", options.model, "--prompt", 512, "--threads", physical_cores(), "--ready"]
    runs = {n: partial(rounds.once, n, path, *asked) for n, path in paths.items()}
    found = rounds.interleaved(runs, STARTS * options.rounds, options.folder, {"torch-f32": 3 * STARTS})
    missing |= {n: str(row["error"]) for n, rows in found.items() for row in rows if "error" in row}
    figure: Figure = {"model": options.model}
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


def _turn(r: Race, *arguments: object) -> Turn:
    """A prompt in a new stream, or the next tokens of one."""
    if r.what == "prefill":
        return Turn("prompt", "child", *arguments)
    return Turn(f"step {r.new}", "child", *arguments, before=("prompt", f"step {r.new}"))


def _speed(r: Race, row: rounds.Result) -> float:
    """Tokens/s."""
    return 1 / statistics.median(row["step_s"]) if r.what == "decode" else float(r.prompt / row["prompt_s"])


def _shares(rows: Sequence[rounds.Result], speeds: Sequence[tuple[int, float]], size: int) -> list[float]:
    """Of the bandwidth of its round, by the bytes of its weights."""
    return [speed * size / 1e9 / row["bandwidth"] for row, (_, speed) in zip(rows, speeds, strict=True)]


def _median(values: Sequence[tuple[int, float]]) -> float:
    return statistics.median(v for _, v in values)


def rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{v:.3g}") for v in values]


def spread(values: Sequence[float]) -> Any:
    """[median, lowest, highest]"""
    return rounded([statistics.median(values), min(values), max(values)])
