"""A small language model to train, in this process or in others.

    python -m tests.runtime.training '{"meshes": ["data=1", "data=2,fsdp=2"], "steps": 5}'

prints the losses of each mesh as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

SPEC = """
planform: 1
model: tiny
dims: {vocab: 256, d: 16, layers: 3, heads: 4, kv_heads: 2, head_dim: 4, ff: 32, window: 8}
params:
  table: {shape: [vocab, d], init: normal(0.02)}
blocks:
  norm: rms_norm(offset=1)
  attend(window): |
    norm >> attention(heads, kv_heads, head_dim, causal=true, window=window, scale=head_dim ^ -0.5, position=rope(100))
  feed: norm >> glu(ff, gelu_tanh)
  layer(window): id + attend(window) >> id + feed
graphs:
  lm:
    inputs:
      tokens: int[batch, time]
    body: |
      logits = tokens >> embed(table) * sqrt(d) >> cycle([layer(window), layer(none)], layers)
               >> norm >> unembed(table) >> softcap(30)
sharding: {batch: [data, fsdp], vocab: tensor, heads: tensor, kv_heads: tensor, ff: tensor, d: fsdp}
train:
  data: text(tokens, length=16, heldout=0.2)
  loss: cross_entropy(lm(tokens).logits, next(tokens))
  optimizer: adamw(warmup_cosine(1e-2, warmup=3), weight_decay=0.1, clip=1.0)
  batch: 8
  steps: 20
  evaluate: {every: 100, batches: 2}
  checkpoint: {every: 5, keep: 2}
"""

LIGHT = SPEC.replace("cycle([layer(window), layer(none)], layers)", "(id + feed) ^ layers")
"""The same without attention, which takes a third of the time to compile."""

TEACHER = LIGHT
for _old, _new in (
    ("tiny", "big"),
    ("layers: 3", "layers: 2"),
    ("d: 16", "d: 24"),
    ("ff: tensor, d: fsdp", "ff: fsdp"),
):
    TEACHER = TEACHER.replace(_old, _new)
SOFT = "cross_entropy(lm(tokens).logits / 2, softmax(teacher.lm(tokens).logits / 2))"
HARD = "cross_entropy(lm(tokens).logits, next(tokens))"
STUDENT = LIGHT
for _old, _new in (("layers: 3", "layers: 1"), (HARD, SOFT), ("train:\n", "uses: {teacher: teacher.yaml}\ntrain:\n")):
    STUDENT = STUDENT.replace(_old, _new)
"""A student of `TEACHER`, whose spec lies beside its own."""


def write_distillation(folder: Path) -> None:
    """teacher.yaml and student.yaml."""
    (folder / "teacher.yaml").write_text(TEACHER)
    (folder / "student.yaml").write_text(STUDENT)


def corpus(folder: Path) -> Path:
    """Documents of very different lengths, so that the parts of a batch have different numbers of targets."""
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(60):
        words = [rng.choice(("red", "green", "blue", "round", "flat", "old", "new")) for _ in range(rng.randint(1, 40))]
        path = folder / f"{i:02}.txt"
        if not path.exists():
            path.write_text(" ".join(words))
            os.utime(path, (0, 0))
    return folder


def trainer(
    folder: Path,
    mesh: str = "data=1",
    compute: str = "f32",
    text: str = SPEC,
    spec: str | None = None,
    overrides: Sequence[str] = (),
    save: bool = False,
    observer: Any = None,
    unroll: int | None = None,
    teacher: str | None = None,
    **program_fields: Any,
) -> Any:
    """A Trainer of `text`, or of the `spec` of a file or name; its data and (with `save`) checkpoints are in `folder`.
    `teacher` is the run whose weights a used spec of that name takes."""
    from planform.backends.xla import Policy
    from planform.compiler.program import program
    from planform.runtime.data import TextData, load_tokenizer, read_corpus
    from planform.runtime.mesh import check_mesh, make_mesh, parse_mesh, rules_of, share_of
    from planform.runtime.trainer import Trainer
    from planform.runtime.updates import Layout
    from planform.runtime.uses import find, get
    from planform.spec import load, load_text

    spec = load(spec, overrides=tuple(overrides)) if spec else load_text(text, overrides=tuple(overrides))
    chosen = replace(program(spec), **program_fields)
    axes, rules = parse_mesh(mesh), rules_of(spec)
    check_mesh(spec, [u.loss for u in chosen.updates], axes, chosen.batch, chosen.accumulate)
    layout = Layout(make_mesh(axes), rules, Policy(compute=compute, unroll=unroll))  # type: ignore[arg-type]
    share = share_of(layout.mesh, rules, chosen.batch)
    data = TextData(
        read_corpus(corpus(folder / "text"), heldout=0.2),
        load_tokenizer(),
        chosen.data.arguments["length"],
        share,
        folder / "cache",
        chosen.seed,
    )
    used = find(spec, [u.loss for u in chosen.updates], {"teacher": teacher} if teacher else {})
    return Trainer(chosen, data, layout, folder / "run" if save else None, observer, get(used))


class Losses:
    """An observer that keeps the losses of all steps, in order."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: list[float] = []

    def step(self, step: int, tokens: int, values: Mapping[str, float]) -> None:
        self.steps.append(step)
        self.values.append(values["loss"])

    def evaluation(self, step: int, values: Mapping[str, float]) -> None: ...


@contextmanager
def compiled_once(folder: Path) -> Iterator[None]:
    """Within it, a program that was compiled before is not compiled again."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    settings = {"jax_compilation_cache_dir": str(folder), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in settings}
    compilation_cache.reset_cache()
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        compilation_cache.reset_cache()
        for name, value in before.items():
            jax.config.update(name, value)


def digest(arrays: Mapping[str, Any]) -> str:
    """Of names and bytes."""
    import numpy as np

    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(name.encode() + b"\0" + np.ascontiguousarray(arrays[name]).tobytes())
    return found.hexdigest()


def bytes_per_device(arrays: Any) -> dict[int, int]:
    """Bytes of a tree of arrays that each device of this process holds."""
    import jax

    held: dict[int, int] = {}
    for array in jax.tree.leaves(arrays):
        for shard in array.addressable_shards:
            held[shard.device.id] = held.get(shard.device.id, 0) + shard.data.nbytes
    return held


def start(
    job: Mapping[str, Any], devices: int = 1, place: str | None = None, quick: bool = True
) -> subprocess.Popen[str]:
    """This module as a process with so many host devices; `place` as in `distributed.PLACE`.

    quick  compile in half the time, to slower code, and each program once in a folder
    """
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / ".pkg"), str(ROOT)]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    if quick:
        environment["XLA_FLAGS"] += " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        environment["JAX_COMPILATION_CACHE_DIR"] = str(Path(job["folder"], "compiled"))
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    if place:
        environment["PLANFORM_PLACE"] = place
    # A process with a place ends when its standard input does: it stays open as long as this process lives.
    stdin, _ = os.pipe() if place else (subprocess.DEVNULL, None)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.runtime.training", json.dumps(dict(job))],
        env=environment,
        cwd=ROOT,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child: subprocess.Popen[str], timeout: float = 600) -> Any:
    """What the process printed, parsed."""
    try:
        out, err = child.communicate(timeout=timeout)
    finally:
        child.kill()
    assert child.returncode == 0, err
    return json.loads(out)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Killed(Losses):
    """Kills the process some milliseconds after a step is reported: `step 4 20`."""

    def __init__(self, at: int, milliseconds: int) -> None:
        super().__init__()
        self._at, self._seconds = at, milliseconds / 1000

    def step(self, step: int, tokens: int, values: Mapping[str, float]) -> None:
        super().step(step, tokens, values)
        if step == self._at:
            threading.Timer(self._seconds, die).start()


def kill_in_save(when: str, step: str) -> None:
    """Kills the process just `before` the checkpoint of a step gets its final name, or just `after`."""
    original = os.rename

    def rename(source: Any, target: Any, **options: Any) -> None:
        mine = os.path.basename(target) == step
        if mine and when == "before":
            die()
        original(source, target, **options)
        if mine:
            die()

    os.rename = rename


def observer_for(kill: str | None) -> Losses:
    """For `step 4 20`, `before 6`, `after 6` or nothing."""
    when, *numbers = (kill or "never").split()
    if when == "step":
        return Killed(int(numbers[0]), int(numbers[1]))
    if numbers:
        kill_in_save(when, numbers[0])
    return Losses()


def main(job: dict[str, Any]) -> Any:
    import jax

    from planform.runtime import distributed

    assert distributed.begin() is None
    if job.get("compute") == "f64":
        jax.config.update("jax_enable_x64", True)
    folder, meshes, steps = Path(job.pop("folder")), job.pop("meshes"), job.pop("steps")
    kill = job.pop("kill", None)
    out = {}
    for mesh in meshes:
        seen = observer_for(kill)
        with trainer(folder, mesh, observer=seen, steps=steps, **job) as t:
            state = {"before": bytes_per_device(t.state.optimizers)}
            result = t.run()
            state["after"] = bytes_per_device(t.state.optimizers)
            parameters, frozen = bytes_per_device(t.state.parameters), bytes_per_device(t.frozen)
            final = digest(t.state.named()) if jax.process_count() == 1 else None
        out[mesh] = {
            "steps": seen.steps,
            "losses": seen.values,
            "optimizer_bytes": state,
            "parameter_bytes": parameters,
            "frozen_bytes": frozen,
            "digest": final,
            "signal": result.signal,
        }
    return out


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
