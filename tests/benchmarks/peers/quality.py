"""What quantisation costs: how far the next-token distributions of a trained model are from float32's.

Everybody gets the same held-out text: a prompt of three windows at once, then tokens one by one. The error is the mean
of KL(float32 | quantised) over the distributions after the prompt and after each token.
"""

from __future__ import annotations

import numpy as np

from planform.backends.onnx.session import physical_cores
from planform.runtime.data import stdlib_corpus

from ..ratios import judged, together
from ..sizes import TRAINED
from . import rounds
from .compare import Figure, Options, Outcome, forms
from .contenders import KINDS

PROMPT, REST, ROWS = 384, 32, 48
SAME = {"ours": "ours-f32", "genai": "genai-f32", "llama": "llama-f32"}
"""What each tool gives in float32, which must be the same: a tool that has another model is left out."""
EQUAL = 1e-4
GROUPS = (
    ("4 bits", ("ours-int4", "ours-int4-kv8"), ("genai-int4", "llama-q4_0"), True),
    ("8 bits", ("ours-int8", "ours-int8-kv8", "ours-w8"), ("llama-q8_0",), False),
)
"""What is compared: ours, theirs, and whether ours must not be worse (else it is reported)."""


def quantisation_error(options: Options) -> Outcome:
    """The errors of our formats over the smallest of theirs."""
    names = ["torch-f32", *SAME.values(), *(n for _, ours, peers, _ in GROUPS for n in (*ours, *peers))]
    options = Options(size=TRAINED, folder=options.folder)
    paths, missing = forms({n: KINDS[n][1:] for n in names}, options)
    folder = options.folder / TRAINED
    texts = held_out()
    np.save(folder / "texts.npy", texts)
    found: dict[str, np.ndarray] = {}
    for name, path in paths.items():
        kept = folder / f"logits-{name}.npy"
        asked = ("--size", TRAINED, "--prompt", PROMPT, "--threads", physical_cores())
        told = rounds.once(name, path, *asked, "--texts", folder / "texts.npy", "--logits", kept)
        if "error" in told:
            missing[name] = told["error"]
        else:
            found[name] = log_probabilities(np.load(kept))
    truth = found.pop("torch-f32", None)
    if truth is None:
        return {"missing": missing}, "undecided"
    errors = {name: divergence(truth, logs) for name, logs in found.items()}
    for tool, name in SAME.items():
        if errors.get(name, np.zeros(1)).mean() > EQUAL:
            missing[tool] = f"in float32 it is {errors[name].mean():.2g} nats from transformers: another model"
            errors = {n: rows for n, rows in errors.items() if not n.startswith(tool)}
    bits = -np.take_along_axis(truth[:, :-1], texts[:, PROMPT:, None].astype(int), -1).mean() / np.log(2)
    figure: Figure = {
        "held-out bits a byte of float32": round(float(bits), 3),
        "distributions": int(truth.shape[0] * truth.shape[1]),
        "mean KL in nats": {name: float(f"{rows.mean():.3g}") for name, rows in errors.items()},
    }
    verdicts: list[bool | str] = []
    for group, ours, peers, bound in GROUPS:
        here = [[n for n in names if n in errors] for names in (ours, peers)]
        if not all(here):
            continue
        rival = min(here[1], key=lambda n: errors[n].mean())
        told = {n: ratio(errors[n], errors[rival]) for n in here[0]}
        figure[f"{group}: ours / {rival}"] = {n: [float(f"{x:.3g}") for x in r] for n, r in told.items()}
        if bound:
            verdicts += [judged(1 / high, 1 / low, aim=1.0) for _, low, high in told.values()]
    if missing:
        figure["missing"] = missing
        verdicts.append("undecided")
    return figure, together(verdicts)


def held_out() -> np.ndarray:
    """int32[ROWS, PROMPT + REST]: bytes of documents that weren't trained on, spread evenly."""
    text = b"".join(c for d in stdlib_corpus().heldout for c in d.chunks())
    all_ = np.frombuffer(text, np.uint8).astype(np.int32)
    starts = np.linspace(0, len(all_) - PROMPT - REST, ROWS).astype(int)
    return np.stack([all_[s : s + PROMPT + REST] for s in starts])


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    z = logits.astype(np.float64)
    z -= z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Mean KL(p | q) of each row of log probabilities [rows, positions, vocab]."""
    mean: np.ndarray = (np.exp(p) * (p - q)).sum(-1).mean(-1)
    return mean


def ratio(a: np.ndarray, b: np.ndarray, draws: int = 10_000) -> tuple[float, float, float]:
    """(mean a / mean b, and its 95% bootstrap interval over rows)."""
    drawn = np.random.default_rng(0).integers(0, len(a), (draws, len(a)))
    low, high = np.percentile(a[drawn].mean(1) / b[drawn].mean(1), [2.5, 97.5])
    return float(a.mean() / b.mean()), float(low), float(high)
