"""One trainer in a process of its own: compiles a step, then makes one for each line on standard input.

    python -m tests.benchmarks.peers.train_child hand|ours|products|deepmind|torch --size t40

The first line that it prints is what getting ready cost, "first_s" among it: tracing, compiling, and the first step.
Each other one is {"seconds", "loss", "memory"} of a step.
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

Step = Callable[[], float]


def jax_step(variant: str, size: str, batch: int, time_: int) -> tuple[Step, dict[str, Any]]:
    """A variant of tests.benchmarks.xla."""
    from tests.benchmarks.xla import compiled

    r = compiled(variant, SIZES[size], argparse.Namespace(batch=batch, time=time_), run=True)

    def step() -> float:
        r["state"], loss = r["run"](r["state"], r["tokens"])
        return float(loss)

    return step, r["cost"]


def torch_step(size: str, batch: int, time_: int, threads: int) -> tuple[Step, dict[str, Any]]:
    """transformers' model, eager, with torch's fused AdamW."""
    import torch
    import transformers

    from .contenders import attention

    s = SIZES[size]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(s.model_type, **s.config)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention(config)).train()
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
    parser.add_argument("name", help="torch, or a variant of tests.benchmarks.xla")
    parser.add_argument("--size", default="t40", choices=SIZES)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--time", type=int, default=256)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    if args.name == "torch":
        step, cost = torch_step(args.size, args.batch, args.time, args.threads)
    else:
        step, cost = jax_step(args.name, args.size, args.batch, args.time)
    begin = time.perf_counter()
    step()
    first = time.perf_counter() - begin + cost.get("trace_s", 0.0) + cost.get("compile_s", 0.0)
    for _ in range(2):  # until the allocator has what the steps need
        step()
    print(json.dumps({**cost, "first_s": round(first, 2)}), flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        loss = step()
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "loss": loss, "memory": peak_memory()}), flush=True)


if __name__ == "__main__":
    main()
