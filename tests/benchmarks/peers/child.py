"""One contender in a process of its own, which loads its model and then does what each line on standard input says.

    python -m tests.benchmarks.peers.child NAME PATH --size m300 --threads 2 --prompt 512 --room 800

The first line that it prints is {"load_s"}; then, for `prompt`, {"prompt_s"} of a prompt at the beginning of a new
stream, and for `step N`, {"step_s"} of each of the next tokens; "memory" is in all, bytes at most so far. With
`--ready` it tells instead, once, what a start costs: "ready_s" until a first token, and the memory of a prompt and some
tokens. With `--texts FILE --logits FILE` it writes logits: after the first --prompt tokens of each text, and after each
token of the rest.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

from ..sizes import SIZES
from .contender import Contender
from .contenders import KINDS

READY = 16
"""Tokens after the prompt of a start."""


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
    parser.add_argument("--room", type=int, help="entries that a stream may have; default: a start's")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--ready", action="store_true", help="times loading: from the first import to a first token")
    parser.add_argument("--texts", type=Path, help="int32[rows, time], for --logits")
    parser.add_argument("--logits", type=Path)
    args = parser.parse_args()
    kind, _, _ = KINDS[args.name]
    size = SIZES[args.size]
    tokens = prompt(size.vocab, args.prompt)
    room = args.room or args.prompt + READY + 8
    begin = time.perf_counter()
    contender = kind(size, args.path, args.threads)
    contender.start(room)
    told: dict[str, object] = {"load_s": time.perf_counter() - begin}
    if args.logits:
        np.save(args.logits, logits(contender, np.load(args.texts), args.prompt))
    elif args.ready:
        contender.feed(tokens[:1])
        told["ready_s"] = time.perf_counter() - begin
        contender.start(room)
        contender.prompt(tokens)
        contender.timed_steps(READY)
    say(told)
    if args.logits or args.ready:
        return
    contender.prompt(tokens[: kind.warm])
    for line in sys.stdin:
        what, *count = line.split()
        if what == "prompt":
            contender.start(room)
            say({"prompt_s": contender.timed_prompt(tokens)})
        else:
            say({"step_s": contender.timed_steps(int(count[0]))})


def say(told: dict[str, object]) -> None:
    print(json.dumps({**told, "memory": peak_memory()}), flush=True)


if __name__ == "__main__":
    main()
