"""One trainer in a process of its own: compiles a step, then makes as many as each line on standard input says.

    python -m tests.benchmarks.peers.train_child hand|ours|products|torch --size t40

The first line that it prints is {"cost"} of getting ready, each other one {"seconds", "loss", "memory"} of a turn.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from ..sizes import SIZES
from .child import peak_memory

NAMES = ("ours", "hand", "products", "torch")


def jax_step(name: str, size: str, batch: int, time_: int) -> tuple[Callable[[], float], dict[str, Any]]:
    from tests.benchmarks.xla import compiled

    r = compiled(name, SIZES[size], argparse.Namespace(batch=batch, time=time_), run=True)

    def step() -> float:
        r["state"], loss = r["run"](r["state"], r["tokens"])
        return float(loss)

    return step, r["cost"]


def torch_step(size: str, batch: int, time_: int, threads: int) -> tuple[Callable[[], float], dict[str, Any]]:
    """transformers' model, eager, with torch's fused AdamW."""
    import torch
    import transformers

    s = SIZES[size]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = transformers.Gemma2Config(**s.config, attn_implementation="eager")
    model = transformers.Gemma2ForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    tokens = torch.randint(3, s.vocab, (batch, time_ + 1))

    def step() -> float:
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss)

    return step, {}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--size", default="t40", choices=SIZES)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--time", type=int, default=256)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    if args.name == "torch":
        step, cost = torch_step(args.size, args.batch, args.time, args.threads)
    else:
        step, cost = jax_step(args.name, args.size, args.batch, args.time)
    step()
    print(json.dumps({"cost": cost}), flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        losses = [step() for _ in range(int(line))]
        seconds = (time.perf_counter() - begin) / len(losses)
        print(json.dumps({"seconds": seconds, "loss": losses[-1], "memory": peak_memory()}), flush=True)


if __name__ == "__main__":
    main()
