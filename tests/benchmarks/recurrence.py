"""Measures linear recurrences on XLA's CPU: ours beside every other form that exists for JAX.

python -m tests.benchmarks.recurrence [--shapes 4x256x512,1x512x2560] [--what alone,layer] [--rounds 9]

`alone` is h_t = a_t h_(t-1) + b_t for given a and b; `layer` makes these from x and log a, normalised, as a model
does: then they are the program's own. Each forward, and with the gradient of everything. Contenders take turns. One
JSON line a case: medians in ms, and how many times as fast ours is as each, with the 95% bootstrap interval; also as
one pass over the arrays that must be read and written at least, which is what memory allows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from planform.backends.xla.scans import Plain, Scan, decayed
from planform.backends.xla.scans.forms import recur

from .ratios import interval

SHAPES = ((4, 256, 512), (1, 512, 2560), (1, 4096, 2560), (4, 2048, 1024))
"""[batch, time, width]: a training step of 36M parameters, prompts for 2b, a training step for the paper's 200M."""

Function = Callable[[jax.Array, jax.Array], jax.Array]


def scan(unroll: int) -> Function:
    """The loop as everybody writes it: time in front."""

    def step(h: jax.Array, ab: Any) -> tuple[jax.Array, jax.Array]:
        h = ab[0] * h + ab[1]
        return h, h

    def f(a: jax.Array, b: jax.Array) -> jax.Array:
        ab = (a.swapaxes(0, 1), b.swapaxes(0, 1))
        return lax.scan(step, jnp.zeros_like(a[:, 0]), ab, unroll=unroll)[1].swapaxes(0, 1)

    return f


def associative(a: jax.Array, b: jax.Array) -> jax.Array:
    return lax.associative_scan(lambda l, r: (l[0] * r[0], r[0] * l[1] + r[1]), (a, b), axis=1)[1]


def chunked(a: jax.Array, b: jax.Array) -> jax.Array:
    """Sixteen steps within all chunks at once, then a step a chunk for what they hand on."""
    batch, length, width = a.shape
    a, b = (x.reshape(batch, -1, 16, width).transpose(2, 0, 1, 3) for x in (a, b))

    def within(carry: Any, ab: Any) -> Any:
        carry = (carry[0] * ab[0], ab[0] * carry[1] + ab[1])
        return carry, carry

    _, (decay, h) = lax.scan(within, (jnp.ones_like(a[0]), jnp.zeros_like(b[0])), (a, b), unroll=16)
    last = (decay[-1].swapaxes(0, 1), h[-1].swapaxes(0, 1))
    _, before = lax.scan(lambda c, x: (x[0] * c + x[1], c), jnp.zeros_like(last[1][0]), last)
    return (h + decay * before.swapaxes(0, 1)).transpose(1, 2, 0, 3).reshape(batch, length, width)


def recurrentgemma(kind: str, unroll: int = 1) -> Function:
    """PyPI recurrentgemma's own, by the name that it has there. Its layer asks for `unroll` 128."""
    from recurrentgemma import common
    from recurrentgemma.jax import scan as theirs

    return lambda a, b: theirs.linear_scan(x=b, a=a, scan_type=common.ScanType[kind], unroll=unroll)[0]


UNROLLED = "recurrentgemma LINEAR_NATIVE unroll 128"
"""It takes a minute to compile."""

OTHERS: dict[str, Callable[[], Function]] = {
    "lax.scan": lambda: scan(1),
    "lax.scan unroll 8": lambda: scan(8),
    "lax.associative_scan": lambda: associative,
    "chunks": lambda: chunked,
    "recurrentgemma LINEAR_NATIVE": lambda: recurrentgemma("LINEAR_NATIVE"),
    UNROLLED: lambda: recurrentgemma("LINEAR_NATIVE", 128),
    "recurrentgemma ASSOCIATIVE_NATIVE": lambda: recurrentgemma("ASSOCIATIVE_NATIVE"),
}


def ours(a: jax.Array, b: jax.Array) -> jax.Array:
    return recur("sequential", False, a, b, jnp.zeros_like(b[:, 0]))[0]


def ours_layer(x: jax.Array, log_a: jax.Array) -> jax.Array:
    return decayed(Scan(Plain("sequential", True)), x, log_a, jnp.zeros_like(x[:, 0]))[0]


def layer(f: Function) -> Function:
    return lambda x, log_a: f(jnp.exp(log_a), x * jnp.sqrt(-jnp.expm1(2 * log_a)))


def one_pass(u: jax.Array, v: jax.Array) -> jax.Array:
    return 0.5 * u + v


def with_gradient(f: Function) -> Callable[..., Any]:
    def g(u: jax.Array, v: jax.Array, dh: jax.Array) -> Any:
        h, back = jax.vjp(f, u, v)
        return h, back(dh)

    return g


def one_pass_with_gradient(u: jax.Array, v: jax.Array, dh: jax.Array) -> Any:
    """What must be read for h and both gradients, and what written."""
    return 0.5 * u + v, (0.5 * dh + u, 0.5 * dh + v)


def cases(
    what: str, shape: tuple[int, int, int], without: tuple[str, ...] = ()
) -> Iterator[tuple[str, dict[str, Any], tuple[jax.Array, ...]]]:
    """(forward or gradient, contenders, arguments)."""
    rng = np.random.default_rng(0)
    a = rng.uniform(0.5, 0.999, shape).astype(np.float32)
    x, dh = (jnp.asarray(rng.standard_normal(shape, np.float32)) for _ in range(2))
    made = {name: make() for name, make in OTHERS.items() if name not in without}
    if what == "layer":
        forms = {"ours": ours_layer, **{name: layer(f) for name, f in made.items()}}
        args = (x, jnp.log(a))
    else:
        forms, args = {"ours": ours, **made}, (jnp.asarray(a), x)
    yield "forward", {**forms, "one pass": one_pass}, args
    grads = {name: with_gradient(f) for name, f in forms.items()}
    yield "gradient", {**grads, "one pass": one_pass_with_gradient}, (*args, dh)


def measure(forms: dict[str, Any], args: tuple[jax.Array, ...], rounds: int, seconds: float) -> dict[str, Any]:
    """Compile times, and in every round the ms of each form; they must agree on what they compute."""
    runs, compiled, results = {}, {}, {}
    for name, f in forms.items():
        start = time.perf_counter()
        runs[name] = jax.jit(f).lower(*args).compile()
        compiled[name] = round(time.perf_counter() - start, 2)
        results[name] = [np.asarray(y) for y in jax.tree.leaves(runs[name](*args))]
    for name in forms:
        if name != "one pass":
            for got, want in zip(results[name], results["lax.associative_scan"], strict=True):
                assert np.abs(got - want).max() < 1e-4 * np.abs(want).max(), name
    del results
    taken: dict[str, list[float]] = {name: [] for name in forms}
    names = list(forms)
    for i in range(rounds + 1):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start, turns = time.perf_counter(), 0
            while turns == 0 or time.perf_counter() - start < seconds:
                jax.block_until_ready(runs[name](*args))
                turns += 1
            taken[name].append((time.perf_counter() - start) / turns * 1e3)
    taken = {name: ms[1:] for name, ms in taken.items()}  # the first round warms up
    mine = taken["ours"]
    speed = {name: [round(v, 3) for v in interval([t / m for t, m in zip(ms, mine)])] for name, ms in taken.items()}
    return {
        "ms": {name: round(float(np.median(ms)), 3) for name, ms in taken.items()},
        "speed": {name: s for name, s in speed.items() if name != "ours"},
        "compile_s": compiled,
    }


def run(shapes: tuple[Any, ...] = SHAPES, whats: tuple[str, ...] = ("alone", "layer"), rounds: int = 7,
        seconds: float = 0.05, without: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:  # fmt: skip
    for shape in shapes:
        for what in whats:
            for direction, forms, args in cases(what, shape, without):
                found = measure(forms, args, rounds, seconds)
                yield {"shape": "x".join(map(str, shape)), "what": what, "direction": direction, **found}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shapes", default=",".join("x".join(map(str, s)) for s in SHAPES))
    p.add_argument("--what", default="alone,layer")
    p.add_argument("--without", default="", help="names of forms, with commas")
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--seconds", type=float, default=0.05, help="that a turn takes at least")
    args = p.parse_args()
    shapes = tuple(tuple(map(int, s.split("x"))) for s in args.shapes.split(","))
    for line in run(shapes, tuple(args.what.split(",")), args.rounds, args.seconds, tuple(args.without.split(","))):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
