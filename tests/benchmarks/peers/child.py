"""One contender in a process of its own: what is timed in it, as one JSON line.

    python -m tests.benchmarks.peers.child NAME PATH --size m300 --threads 2 --prompt 512 --new 24

With `--texts FILE --logits FILE` it writes logits instead: after the first --prompt tokens of each text, and after each
token of the rest.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np

from ..sizes import SIZES
from .contender import Contender
from .contenders import KINDS

WARM = 2
"""Steps after a prompt that aren't counted."""


def peak_memory() -> int:
    """Bytes that the process held at most."""
    for line in Path("/proc/self/status").read_text().splitlines() if Path("/proc/self/status").exists() else ():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def prompt(vocab: int, length: int) -> np.ndarray:
    """The same tokens for everybody; special ids are left out."""
    return np.random.default_rng(1).integers(4, vocab, length).astype(np.int32)


def logits(contender: Contender, texts: np.ndarray, prompt: int) -> np.ndarray:
    """[rows, 1 + rest, vocab] of texts [rows, prompt + rest]: after the prompt, and after each token of the rest."""
    found = []
    for text in texts:
        contender.start(len(text) + 8)
        rest = [text[i : i + 1] for i in range(prompt, len(text))]
        found.append(np.stack([contender.feed(text[:prompt]), *map(contender.feed, rest)]))
    return np.stack(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=KINDS)
    parser.add_argument("path", type=Path)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=24)
    parser.add_argument("--warm", action="store_true", help="takes a prompt that isn't counted before")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--ready", action="store_true", help="times loading: from the first import to a first token")
    parser.add_argument("--texts", type=Path, help="int32[rows, time], for --logits")
    parser.add_argument("--logits", type=Path)
    args = parser.parse_args()
    kind, _, _ = KINDS[args.name]
    size = SIZES[args.size]
    tokens = prompt(size.vocab, args.prompt)
    room = args.prompt + args.new + WARM + 8
    begin = time.perf_counter()
    contender = kind(size, args.path, args.threads)
    contender.start(room)
    told: dict[str, object] = {"load_s": time.perf_counter() - begin}
    if args.ready:
        contender.feed(tokens[:1])
        told["ready_s"] = time.perf_counter() - begin
        contender.start(room)
    if args.logits:
        np.save(args.logits, logits(contender, np.load(args.texts), args.prompt))
        print("{}")
        return
    if args.warm:
        contender.greedy(tokens[: kind.warm], 0)
        contender.start(room)
    found = contender.greedy(tokens, args.new + WARM if args.new else 0)
    told |= {"prefill_s": [found.prefill], "step_s": found.steps[WARM:], "memory": peak_memory()}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
