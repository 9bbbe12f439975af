"""Distillation: a student learns more from its teacher than from the text alone; no logits exist as a whole.

    python -m tests.evidence.gemma2.d_distillation --out FOLDER     # the figures as JSON, and a plot

does the same as the row `distillation`, into a folder of your own.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from planform.backends.xla import Policy, lower
from planform.backends.xla.policy import DTYPES
from planform.compiler.ir import Graph
from planform.compiler.program import Program, program
from planform.runtime.evaluate import evaluate_run
from planform.runtime.mesh import make_mesh, rules_of
from planform.runtime.train import train
from planform.runtime.updates import Layout, Updates
from planform.spec import Spec, load, load_text
from tests.evidence import row

OUT = Path(__file__).parents[3] / "build" / "evidence" / "distillation"
HARD = "cross_entropy(lm(tokens).logits, next(tokens))"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Setting:
    """How much each model sees, in steps of 8 windows of 256 bytes of the standard library's source, and how often a
    student is measured."""

    teacher: int = 700
    student: int = 200
    every: int = 25
    batches: int = 16

    def options(self) -> list[str]:
        return [f"train.evaluate.every={self.every}", f"train.evaluate.batches={self.batches}"]


def distil(out: Path, setting: Setting, seeds: tuple[int, ...] = SEEDS, mesh: dict[str, int] | None = None) -> Any:
    """Trains the teacher once, then the same student on the text and on the teacher, for each seed: the same first
    values, windows in the same order, steps and rates. Held-out bits per byte of the text, all along.

    What is there already goes on or is read: a run that was cut off costs only what it had left.
    """
    teacher = load("gemma2@small")
    train(teacher, out / "teacher", steps=setting.teacher, mesh=mesh, quiet=True)
    figure: dict[str, Any] = {
        "bits of the teacher": evaluate_run(out / "teacher", batches=setting.batches)["bits_per_byte"]
    }
    for seed in seeds:
        for way, extra in (("text", [f"train.loss={HARD}", "uses=null"]), ("teacher", [])):
            overrides = [*setting.options(), *extra]
            spec = load("gemma2_distilled", overrides=overrides)
            folder = out / f"{way}-{seed}"
            given = {"teacher": out / "teacher"} if way == "teacher" else {}
            train(
                spec, folder, overrides=overrides, steps=setting.student, seed=seed, mesh=mesh, quiet=True, uses=given
            )
            told = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            curve = {e["step"]: e["bits_per_byte"] for e in told if "bits_per_byte" in e}
            figure.setdefault(way, {})[seed] = {str(step): round(bits, 4) for step, bits in sorted(curve.items())}
    return figure


def summary(figure: Any, setting: Setting) -> tuple[dict[str, Any], bool]:
    last = {way: [list(c.values())[-1] for c in figure[way].values()] for way in ("text", "teacher")}
    gains = [a - b for a, b in zip(last["text"], last["teacher"])]
    told = {
        "bits per byte of held-out text": {
            "learned from the text": [round(v, 3) for v in last["text"]],
            "learned from the teacher": [round(v, 3) for v in last["teacher"]],
            "the teacher": round(figure["bits of the teacher"], 3),
        },
        "gain of each seed": [round(g, 3) for g in gains],
        "mean gain": round(statistics.mean(gains), 3),
        "tokens seen by a student": setting.student * 8 * 256,
        "tokens seen by the teacher": setting.teacher * 8 * 256,
    }
    return told, all(g > 0 for g in gains)


def plot(figure: Any, path: Path) -> None:
    """The held-out curves of all students, the two ways apart; and what the teacher gains each seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawing, (axes, gains) = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for way, colour in (("text", "#8a8f98"), ("teacher", "#1f6feb")):
        for i, curve in enumerate(figure[way].values()):
            label = f"learned from the {way}" if not i else None
            axes.plot([int(s) for s in curve], list(curve.values()), color=colour, lw=1.6, alpha=0.85, label=label)
    axes.axhline(figure["bits of the teacher"], color="black", lw=1, ls=":", label="the teacher")
    axes.set_ylabel("bits per byte of held-out text")
    axes.set_title("The same student, the same bytes", loc="left")
    axes.legend(frameon=False)
    for seed, curve in figure["text"].items():
        gain = [bits - figure["teacher"][seed][step] for step, bits in curve.items()]
        gains.plot([int(s) for s in curve], gain, color="#1f6feb", lw=1.6, marker="o", ms=3)
        gains.annotate(f"seed {seed}", (int(list(curve)[-1]), gain[-1]), xytext=(6, -3), textcoords="offset points")
    gains.axhline(0, color="black", lw=1, ls=":")
    gains.set_ylabel("bits per byte saved by the teacher")
    gains.set_title("What the teacher is worth", loc="left")
    for one in (axes, gains):
        one.set_xlabel("steps (8 windows of 256 bytes)")
        one.spines[["top", "right"]].set_visible(False)
    gains.margins(x=0.12)
    drawing.savefig(path, dpi=150)
    pyplot.close(drawing)


def run(out: Path, setting: Setting, seeds: tuple[int, ...] = SEEDS, mesh: dict[str, int] | None = None) -> Any:
    """Everything, with `distillation.json` and `distillation.png` in `out`."""
    figure = distil(out, setting, seeds, mesh)
    told, holds = summary(figure, setting)
    (out / "distillation.json").write_text(json.dumps({**told, "setting": vars(setting), "curves": figure}, indent=1))
    try:
        plot(figure, out / "distillation.png")
        told["plot"] = str(out / "distillation.png")
    except ModuleNotFoundError:
        told["plot"] = "needs matplotlib (pip install -e '.[bench]'); the curves are in distillation.json"
    return told, holds


@row(
    "gemma2",
    "distillation",
    "a student that learns from a larger model's distributions beats the same student that learns from the text, on "
    "the same tokens, in bits per byte of held-out text, in each of three seeds (paper, table 7)",
    12,
)
def distillation() -> tuple[Any, bool]:
    shutil.rmtree(OUT, ignore_errors=True)  # nothing of an earlier measurement goes into this one
    found: tuple[Any, bool] = run(OUT, Setting())
    return found


# -- memory ------------------------------------------------------------------------------------------------

VOCAB, BATCH, LENGTH = 256_000, 8, 512
WIDE = """planform: 1
extends: gemma2@small
model: wide
dims: {vocab: 256000, d: 32, layers: 1, heads: 1, kv_heads: 1, head_dim: 32, ff: 64}
train: {batch: 8, data: "text(tokens, length=512)"}
"""
LOSSES = {
    "text": HARD,
    "teacher": "cross_entropy(lm(tokens).logits, softmax(teacher.lm(tokens).logits))",
    "both, at a temperature": "0.5 * cross_entropy(lm(tokens).logits, next(tokens)) + 0.5 * "
    "cross_entropy(lm(tokens).logits / 2, softmax(teacher.lm(tokens).logits / 2))",
}


def wide(loss: str, folder: Path) -> Spec:
    """A narrow Gemma 2 with the whole vocabulary, and a wider one as its teacher."""
    (folder / "teacher.yaml").write_text(WIDE.replace("model: wide", "model: teacher").replace("d: 32", "d: 48"))
    uses = "uses: {teacher: teacher.yaml}\n" if "teacher" in loss else ""
    return load_text(WIDE + uses, "wide.yaml", overrides=[f"train.loss={loss}"], folder=folder)


def compiled_step(spec: Spec, chosen: Program) -> Any:
    """The whole step (gradients, clipping, AdamW) as XLA compiled it; nothing is allocated."""
    layout = Layout(make_mesh({"data": 1}), rules_of(spec), Policy())
    updates = Updates(chosen, layout)
    (update,) = updates.each
    kinds = {
        n: jax.ShapeDtypeStruct(s.type.shape({}), DTYPES["f32"]) for n, s in (updates.storage | updates.frozen).items()
    }
    own, frozen = ({n: kinds[n] for n in names} for names in (updates.storage, updates.frozen))
    state = jax.eval_shape(update.transformation.init, {n: own[n] for n in update.trained})
    batch = {n: jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32) for n in update.inputs}
    return update.step.lower(own, state, batch, 1, frozen).compile()


def compiled_plain(graph: Graph) -> Any:
    """Loss and gradients of the graph as the spec says it, without any pass."""
    from planform.backends.xla import storage

    f = lower(graph, Policy())
    kinds = {n: jax.ShapeDtypeStruct(s.type.shape({}), DTYPES["f32"]) for n, s in storage(graph, Policy()).items()}
    own = {n: k for n, k in kinds.items() if not n.startswith("teacher.")}
    frozen = {n: k for n, k in kinds.items() if n.startswith("teacher.")}
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    loss = jax.jit(jax.grad(lambda own, frozen, tokens: f({**own, **frozen}, {"tokens": tokens})["loss"]))
    return loss.lower(own, frozen, tokens).compile()


def largest(compiled: Any) -> tuple[int, str]:
    """(elements, shape) of the largest array that the compiled program has anywhere."""
    shapes = {
        m[0]: [int(n) for n in m[1].split(",")] for m in re.finditer(r"\b[a-z]+\d+\[([\d,]+)\]", compiled.as_text())
    }
    sizes = {}
    for text, dims in shapes.items():
        n = 1
        for d in dims:
            n *= d
        sizes[text] = n
    text = max(sizes, key=lambda t: sizes[t])
    return sizes[text], text


@row(
    "gemma2",
    "loss_memory",
    "vocabulary 256,000, 4,096 tokens: no array of a compiled training step is as large as [tokens, vocab], whatever "
    "the loss; its temporary memory is below a quarter of one such array",
    2,
)
def loss_memory() -> tuple[Any, bool]:
    whole = BATCH * LENGTH * VOCAB
    figure: dict[str, Any] = {"one [tokens, vocab] in float32, MB": round(4 * whole / 1e6)}
    holds = True
    with tempfile.TemporaryDirectory() as folder:
        for name, loss in LOSSES.items():
            spec = wide(loss, Path(folder))
            chosen = replace(program(spec), batch=BATCH)
            step, plain = compiled_step(spec, chosen), compiled_plain(chosen.updates[0].loss)
            temp, without = (c.memory_analysis().temp_size_in_bytes for c in (step, plain))
            most, shape = largest(step)
            figure[name] = {
                "temporary, MB": round(temp / 1e6),
                "largest array": shape,
                "temporary as the spec says it, without passes, MB": round(without / 1e6),
            }
            holds &= temp < whole and most < whole and without > 4 * whole
    return figure, holds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="where everything goes")
    parser.add_argument("--teacher-steps", type=int, default=Setting.teacher)
    parser.add_argument("--student-steps", type=int, default=Setting.student)
    options = parser.parse_args()
    found, holds = run(options.out, Setting(options.teacher_steps, options.student_steps))
    print(json.dumps({**found, "holds": holds}, indent=1))
    raise SystemExit(not holds)
