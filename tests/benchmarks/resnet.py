"""Measures a training step of ResNet-50 (loss and gradients in float32) beside the same network in flax's linen and in
transformers' (torch), in turn in one process; the row gives it the environment that `planform train` runs in.

python -m tests.benchmarks.resnet --batch 8 --side 224 --rounds 5
python -m tests.benchmarks.resnet --batch 2 --side 64 --rounds 2 --peers flax
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from planform.backends.xla import Policy, from_logical, lower, to_logical
from planform.compiler.parameters import initial
from planform.compiler.passes.pipeline import optimise
from planform.compiler.program import program
from planform.runtime.environment import cpu_environment
from planform.spec import load

from .hand.resnet import ResNet, to_torch, variables
from .peers.models import ROOT
from .peers.rounds import environment
from .ratios import interval

Arrays = Mapping[str, Any]
Run = Callable[[], tuple[float, np.ndarray]]
"""(loss, gradient of the first kernel [rows, columns, in, out])"""

FIRST = "classify.stem.unit.conv2d.weight"


def ours(parameters: Arrays, data: Arrays, told: dict[str, Any]) -> Run:
    (update,) = program(load("resnet50")).updates
    graph = optimise(update.loss, "xla", "training")
    f, stored = lower(graph, Policy()), from_logical(parameters.__getitem__, graph, Policy())
    kept = {k: v for k, v in stored.items() if k.rpartition(".")[2] in ("mean", "variance")}

    def loss(trained: Arrays) -> tuple[jax.Array, Any]:
        found = f({**kept, **trained}, data)
        return found["loss"], {k: found[k] for k in kept}

    trained = {k: v for k, v in stored.items() if k not in kept}
    return _compiled(loss, trained, told, lambda g: to_logical({FIRST: g[FIRST]})[FIRST])


def flax(parameters: Arrays, data: Arrays, told: dict[str, Any]) -> Run:
    held, model = variables(parameters), ResNet()

    def loss(trained: Arrays) -> tuple[jax.Array, Any]:
        logits, after = model.apply({**held, "params": trained}, data["image"], mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, data["label"]).mean(), after

    return _compiled(loss, held["params"], told, lambda g: np.asarray(g["stem"]["conv2d"]["kernel"]))


def _compiled(loss: Any, trained: Any, told: dict[str, Any], first: Callable[[Any], np.ndarray]) -> Run:
    started = time.process_time()
    step = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(trained).compile()
    told["compile_cpu_s"] = round(time.process_time() - started, 1)
    told["temporary_mb"] = round(step.memory_analysis().temp_size_in_bytes / 1e6)

    def run() -> tuple[float, np.ndarray]:
        (value, _), gradients = jax.block_until_ready(step(trained))
        return float(value), first(gradients)

    return run


def torch(parameters: Arrays, data: Arrays, told: dict[str, Any]) -> Run:
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    model = ResNetForImageClassification(ResNetConfig(num_labels=1000)).train()
    to_torch(model, parameters)
    image = torch.from_numpy(np.asarray(data["image"]).transpose(0, 3, 1, 2).copy())
    label = torch.from_numpy(np.asarray(data["label"], np.int64))

    def run() -> tuple[float, np.ndarray]:
        model.zero_grad(set_to_none=True)
        value = torch.nn.functional.cross_entropy(model(pixel_values=image).logits, label)
        value.backward()
        kernel = model.resnet.embedder.embedder.convolution.weight.grad
        return float(value.detach()), kernel.numpy().transpose(2, 3, 1, 0)

    return run


PEERS = {"flax": flax, "torch": torch}


def measure(batch: int = 8, side: int = 224, rounds: int = 5, peers: tuple[str, ...] = tuple(PEERS)) -> dict[str, Any]:
    """Speeds are ratios of times, theirs to ours, medians over rounds with 95% bootstrap intervals."""
    (update,) = program(load("resnet50")).updates
    parameters = {
        n: a + (0.5 if n.endswith("c.batch_norm.scale") else 0) for n, a in initial(update.loss.weights).items()
    }  # branches that count
    rng = np.random.default_rng(0)
    data = {
        "image": jnp.asarray(rng.standard_normal((batch, side, side, 3)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 1000, batch), jnp.int32),
    }
    told: dict[str, dict[str, Any]] = {n: {} for n in ("ours", *peers)}
    made = {"ours": ours(parameters, data, told["ours"])}
    made |= {n: PEERS[n](parameters, data, told[n]) for n in peers}
    answers = {n: run() for n, run in made.items()}
    times: dict[str, list[float]] = {n: [] for n in made}
    for _ in range(rounds):
        for name, run in made.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    value, gradient = answers["ours"]
    for name, taken in times.items():
        told[name]["s"] = round(statistics.median(taken), 3)
        if name != "ours":
            middle, low, high = interval([t / o for t, o in zip(taken, times["ours"])])
            other, theirs = answers[name]
            told[name] |= {
                "speed": round(middle, 2), "interval": [round(low, 2), round(high, 2)],
                "loss_differs": abs(value - other) / abs(other),
                "gradient_differs": _apart(gradient, theirs),
            }  # fmt: skip
    between = {"gradients_of_peers_differ": _apart(*(answers[n][1] for n in peers))} if len(peers) == 2 else {}
    return {"batch": batch, "side": side, "rounds": rounds, **told, **between}


def measure_as_trained(rounds: int) -> dict[str, Any]:
    """`measure` in a process with the environment of `planform train`, for all of them; and flax in one that has the
    allocator of it and XLA's own flags, which are better for flax."""
    given = environment()
    trained = given | cpu_environment(1, given)
    found, own = _measured(rounds, trained), _measured(rounds, trained | {"XLA_FLAGS": ""}, "flax")
    taken = own["flax"]["s"]
    found["flax"]["with_its_own_flags"] = {"s": taken, "speed": round(taken / found["ours"]["s"], 2)}
    return found


def _measured(rounds: int, variables: dict[str, str], *peers: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.resnet", "--rounds", str(rounds)]
    command += ["--peers", *peers] if peers else []
    done = subprocess.run(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.max(np.abs(a - b)) / np.max(np.abs(b)))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--side", type=int, default=224)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    a = p.parse_args()
    print(json.dumps(measure(a.batch, a.side, a.rounds, tuple(a.peers))))


if __name__ == "__main__":
    main()
