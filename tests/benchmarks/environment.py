"""What the process environment does to a training step on CPU: page faults, kernel time, speed.

    python -m tests.benchmarks.environment [--size small|medium] [--rounds 9] [--steps 3] [--only NAME ...]

A child process per setting holds a compiled training step of a plain transformer (written here, so that the
figure says something about the allocator and not about this project's compiler) and runs a few steps whenever
it is told to. The settings take turns within a round; each is compared with "as is" on the same number of
devices, round by round, since a shared machine drifts. One JSON line per setting: medians, and the ratio of
speeds with its 95% bootstrap interval.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from planform.runtime.environment import DISPATCH, TUNABLES

SIZES = {  # vocabulary, width, layers, batch, time
    "small": (256, 192, 4, 16, 256),
    "medium": (8192, 512, 6, 4, 256),
}

Setting = tuple[str, bool]
"""glibc's tunables, and whether JAX dispatches to a thread of its own."""


def first(n: int) -> str:
    """The first n of the tunables that commands run with."""
    return ":".join(f"{name}={value}" for name, value, _ in TUNABLES[:n])


SETTINGS: dict[str, Setting] = {
    "as is": ("", True),
    "huge": (first(1), True),
    "keep": (first(3), True),
    "one": (first(4), True),
    "bare": (first(6), True),
    "all": (first(6), False),
}
"""Each adds to the one before it."""


@dataclass(frozen=True)
class Sample:
    """Of one turn, a step: seconds on the clock and of processor time (which say more on a busy machine),
    those in
    the kernel, minor page faults; and the process's largest memory, bytes."""

    seconds: float
    processor: float
    kernel: float
    faults: float
    memory: int


def environment(setting: Setting, devices: int) -> dict[str, str]:
    """The environment of a child: the caller's, with the setting and the number of CPU devices."""
    tunables, apart = setting
    mine = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "XLA_FLAGS", DISPATCH)}
    mine |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return mine | ({"GLIBC_TUNABLES": tunables} if tunables else {}) | ({} if apart else {DISPATCH: "0"})


class Child:
    """A process that trains when asked."""

    def __init__(self, size: str, setting: Setting, devices: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--child", size],
            env=environment(setting, devices),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the child ended with {self._process.wait()}")
        return json.loads(line)

    def turn(self, steps: int) -> Sample:
        assert self._process.stdin
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return Sample(**self._answer())

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def measure(size: str, settings: dict[tuple[str, int], Setting], rounds: int, steps: int) -> dict[Any, list[Sample]]:
    """Samples by setting, one a round, by (name, devices)."""
    children = {key: Child(size, setting, key[1]) for key, setting in settings.items()}
    samples: dict[Any, list[Sample]] = {key: [] for key in children}
    try:
        for _ in range(rounds):
            for key, child in children.items():
                samples[key].append(child.turn(steps))
    finally:
        for child in children.values():
            child.close()
    return samples


def ratio(base: list[float], other: list[float]) -> list[float]:
    """Median over rounds of base / other (times: above 1, other is faster), and its 95% bootstrap interval."""
    ratios = np.array(base) / np.array(other)
    drawn = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return [round(float(r), 3) for r in (np.median(ratios), low, high)]


def train(size: str) -> None:
    """The child: compiles, answers {}, then runs as many steps as each line on standard input says."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    vocab, width, layers, batch, length = SIZES[size]
    heads = width // 64

    def block(x: Any, w: Any) -> Any:
        def norm(x: Any) -> Any:
            return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)

        q, k, v = (a.reshape(*x.shape[:2], heads, 64) for a in jnp.split(norm(x) @ w["qkv"], 3, -1))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / 8
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -1e30)
        attended = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v).reshape(x.shape)
        x = x + attended @ w["out"]
        return x + jax.nn.gelu(norm(x) @ w["up"]) @ w["down"]

    def loss(params: Any, tokens: Any) -> Any:
        x = params["table"][tokens]
        for w in params["layers"]:
            x = block(x, w)
        logits = x[:, :-1] @ params["table"].T
        chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], -1)[..., 0]
        return jnp.mean(jax.nn.logsumexp(logits, -1) - chosen)

    def step(state: Any, tokens: Any) -> Any:
        gradient = jax.grad(loss)(state[0], tokens)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state[1], gradient)
        second = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g * g, state[2], gradient)
        params = jax.tree.map(lambda p, m, v: p - 1e-4 * m / (jnp.sqrt(v) + 1e-8), state[0], first, second)
        return params, first, second

    rng = np.random.default_rng(0)

    def matrix(*shape: int) -> Any:
        return jnp.asarray(rng.standard_normal(shape, np.float32) * shape[0] ** -0.5)

    shapes = {"qkv": (width, 3 * width), "out": (width, width), "up": (width, 4 * width), "down": (4 * width, width)}
    params = {
        "table": matrix(vocab, width),
        "layers": [{name: matrix(*shape) for name, shape in shapes.items()} for _ in range(layers)],
    }
    mesh = Mesh(np.array(jax.devices()), ("data",))
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = (params, zeros, jax.tree.map(jnp.copy, zeros))
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    batches = NamedSharding(mesh, PartitionSpec("data"))
    run = jax.jit(step, donate_argnums=0)

    def steps(state: Any, count: int) -> Any:
        for _ in range(count):
            tokens = rng.integers(0, vocab, (batch, length), np.int32)
            state = run(state, jax.device_put(tokens, batches))
        return jax.block_until_ready(state)

    state = steps(state, 3)
    print("{}", flush=True)
    for line in sys.stdin:
        count = int(line)
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        state = steps(state, count)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        user, kernel = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
        faults = after.ru_minflt - before.ru_minflt
        each = [amount / count for amount in (seconds, user + kernel, kernel, faults)]
        sample = Sample(*each, memory=after.ru_maxrss * 1024)
        print(json.dumps(vars(sample)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="steps a turn")
    parser.add_argument("--only", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--devices", type=int, nargs="*", default=[1, os.cpu_count() or 1])
    parser.add_argument("--child", choices=SIZES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        train(arguments.child)
        return
    names = ["as is", *(name for name in arguments.only if name != "as is")]
    settings = {(name, d): SETTINGS[name] for d in sorted(set(arguments.devices)) for name in names}
    samples = measure(arguments.size, settings, arguments.rounds, arguments.steps)
    for (name, devices), taken in samples.items():
        base = samples["as is", devices]

        def median(name: str, taken: list[Sample] = taken) -> float:
            return float(np.median([getattr(sample, name) for sample in taken]))

        row = {
            "setting": name,
            "devices": devices,
            "size": arguments.size,
            "ms": round(1e3 * median("seconds"), 1),
            "processor_ms": round(1e3 * median("processor"), 1),
            "kernel_ms": round(1e3 * median("kernel"), 1),
            "page_faults": round(median("faults")),
            "memory_mb": round(max(s.memory for s in taken) / 1e6),
            "speed": ratio([s.seconds for s in base], [s.seconds for s in taken]),
            "processor_speed": ratio([s.processor for s in base], [s.processor for s in taken]),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
