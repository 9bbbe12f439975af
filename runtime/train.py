"""From a spec to a trained model in a folder: what `planform train` does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from planform.backends.xla import Policy
from planform.compiler.parameters import count
from planform.compiler.program import Program, program
from planform.spec import Diagnostic, Spec, SpecError

from .checkpoint import steps as saved_steps
from .data import DataSource, Tokenizer
from .distributed import processes
from .errors import UserError
from .mesh import Axes, check_mesh, default_axes, devices_of, make_mesh, mesh_text, provide_devices, rules_of, share_of
from .metrics import Metrics
from .opening import open_data
from .progress import Progress, number_text
from .run import read_run, write_run
from .trainer import Result, Trainer, Values
from .updates import Layout
from .uses import KEY, find, get

COMPUTE = {"float32": "f32", "bfloat16": "bf16", "float64": "f64"}
"""What a training step can compute in, by its name in a spec; parameters stay float32, or float64 with float64."""

MOMENTS = {"sgd": 0, "adam": 2, "adamw": 2}
"""Numbers that an optimizer keeps per weight."""


def train(
    spec: Spec,
    folder: str | Path,
    *,
    overrides: Sequence[str] = (),
    files: str | Path | Sequence[str | Path] | None = None,
    tokenizer: str | Path | None = None,
    steps: int | None = None,
    batch: int | None = None,
    length: int | None = None,
    accumulate: int | None = None,
    seed: int | None = None,
    mesh: Axes | None = None,
    precision: str | None = None,
    resume: bool = True,
    quiet: bool = False,
    uses: Mapping[str, str | Path] | None = None,
    environment: str | None = None,
    actors: int | None = None,
    ray: str | None = None,
) -> Result:
    """Runs the training program of a spec; everything it writes is in `folder`.

    overrides  those that the spec was loaded with, so that the folder says so
    files      text to train on, the .npz of `arrays`, the images of `signals`, a functaset; else what the spec says,
               else the standard library's source
    tokenizer  "bytes", a tokenizer.json or its folder; else what the spec says
    steps, batch, length, accumulate, seed  in place of the spec's
    mesh       devices along named axes; None for `mesh.default_axes`
    precision  float32, bfloat16 or float64, what to compute in
    resume     go on where the folder's last checkpoint was (it must be of the same data, batch and seed); False
               refuses a folder that has one
    uses       folders of the runs whose weights the used specs take, by the names under `uses`; a run that goes on
               finds them again where they were
    environment  that an agent learns in, `cartpole:balance`; else what the spec says
    actors     how many play in it; else what the spec says
    ray        they play on this Ray cluster: its HOST:PORT, `auto` for the one that runs here, `local` for a new one;
               else in processes of this machine
    In a run of several processes all of them call it alike, after `distributed.begin`.

    Raises: SpecError, UserError.
    """
    folder = Path(folder)
    given: dict[str, Any] = {"steps": steps, "batch": batch, "accumulate": accumulate, "seed": seed}
    chosen = replace(program(spec), **{k: v for k, v in given.items() if v is not None})
    if length is not None:
        chosen = _with_length(chosen, length)
    chosen = as_agent(chosen, environment=environment, actors=actors, ray=ray)
    if not resume and saved_steps(folder):
        raise UserError(f"there is a run in {folder} already", help="choose another folder, or go on with that run")
    compute = _compute(spec, chosen, precision)
    if compute == "f64":
        jax.config.update("jax_enable_x64", True)
    axes = mesh or _default(chosen)
    graphs = [u.loss for u in chosen.updates]
    check_mesh(spec, graphs, axes, chosen.batch, chosen.accumulate)
    provide_devices(-(-devices_of(axes) // processes()))
    policy = Policy(compute=compute)  # type: ignore[arg-type]
    layout = Layout(make_mesh(axes), rules_of(spec), policy)
    share = share_of(layout.mesh, layout.rules, chosen.batch)
    data, words = open_data(chosen, share, folder, files, tokenizer, ray)
    first = jax.process_index() == 0
    told = read_run(folder).get(KEY, {}) if saved_steps(folder) else None
    others = find(spec, [g for u in chosen.updates for g in (u.loss, u.heldout)], uses or {}, told, words)
    if first:
        facts = {**_facts(chosen, data, layout, words), "files": _absolute(files)}
        if others:
            facts[KEY] = {name: weights.told() for name, weights in others.items()}
        write_run(folder, spec, overrides, facts)
        if words:
            (folder / "tokenizer").mkdir(exist_ok=True)
            words.save(folder / "tokenizer")
    with Trainer(chosen, data, layout, folder, frozen=get(others)) as trainer:
        begun = trainer.state.step
        trainer.observer = log = Log(folder, chosen, begun, quiet or not first, first)
        if begun:
            log.progress.note(f"going on from step {begun}")
        try:
            return trainer.run()
        finally:
            log.close()


class Log:
    """The observer of `train`: curves in the folder, progress on standard error."""

    def __init__(self, folder: Path, program: Program, begun: int, quiet: bool, first: bool) -> None:
        self.metrics = Metrics(folder, begun, enabled=first)
        self.progress = Progress(program.steps, begun, program.unit, quiet=quiet)

    def step(self, step: int, tokens: int, values: Values) -> None:
        self.metrics.write(step, values)
        losses = {k: v for k, v in values.items() if k.rpartition("/")[2] == "loss"}
        self.progress.update(step, tokens, losses)

    def evaluation(self, step: int, values: Values) -> None:
        self.metrics.write(step, values)
        shown = ", ".join(f"{k.replace('_', ' ')} {number_text(v)}" for k, v in values.items())
        self.progress.note(f"step {step}: {shown}")

    def close(self) -> None:
        self.progress.close()
        self.metrics.close()


def _with_length(chosen: Program, length: int) -> Program:
    """The program with windows of `length` tokens. Raises: UserError where its data aren't text."""
    if chosen.data.name != "text":
        raise UserError(f"only text has a length, this program trains on {chosen.data.name}", help="leave --length out")
    return chosen.having(length=length)


def as_agent(chosen: Program, **given: Any) -> Program:
    """The program with its agent's environment and number of actors as given. Raises: UserError where something is
    given and there is no agent."""
    asked = {name: value for name, value in given.items() if value is not None}
    if asked and chosen.policy is None:
        raise UserError(f"this program learns from {chosen.data.name}, not in an environment",
                        help=f"leave --{' and --'.join(asked)} out")  # fmt: skip
    return chosen.having(**{k: v for k, v in asked.items() if k in chosen.data.arguments})


def _default(chosen: Program) -> Axes:
    provide_devices()
    numbers = 0
    for u in chosen.updates:
        frozen = sum(math.prod(p.type.shape({})) for p in u.loss.parameters if p.frozen)
        numbers += frozen + (count(u.loss) - frozen) * (2 + MOMENTS[u.optimizer.name])
    return default_axes(chosen.batch, chosen.accumulate, 4 * numbers)


def _compute(spec: Spec, chosen: Program, precision: str | None) -> str:
    """What to compute in, by the policy's name. Raises: SpecError, UserError."""
    if precision is not None:
        if precision not in COMPUTE:
            raise UserError(f"a training step can't compute in {precision}", help="one of " + ", ".join(COMPUTE))
        return COMPUTE[precision]
    asked = chosen.precision.get("compute", "float32")
    kept = chosen.precision.get("parameters", "float64" if asked == "float64" else "float32")
    spans = spec.precision.spans if spec.precision else {}
    if asked not in COMPUTE:
        raise SpecError(Diagnostic("PF0511", f"a training step can't compute in {asked}", spans["compute"],
                                   help="one of " + ", ".join(COMPUTE)))  # fmt: skip
    if kept != ("float64" if asked == "float64" else "float32"):
        raise SpecError(Diagnostic("PF0511", f"parameters can't be trained in {kept} when computing in {asked}",
                                   spans["parameters"], help="they are kept in float32, beside which "
                                   "`compute: bfloat16` makes a step faster"))  # fmt: skip
    return COMPUTE[asked]


def _absolute(files: str | Path | Sequence[str | Path] | None) -> list[str] | None:
    """Where the data given on the command line are, for `eval`."""
    if files is None:
        return None
    return [str(Path(f).resolve()) for f in ([files] if isinstance(files, (str, Path)) else files)]


def _facts(chosen: Program, data: DataSource, layout: Layout, words: Tokenizer | None) -> dict[str, Any]:
    return {
        "steps": chosen.steps,
        "batch": chosen.batch,
        "accumulate": chosen.accumulate,
        "seed": chosen.seed,
        "mesh": mesh_text(layout.mesh.shape),
        "processes": jax.process_count(),
        "compute": layout.policy.compute,
        "tokenizer": words.name if words else None,
        "data": data.describe(),
    }
