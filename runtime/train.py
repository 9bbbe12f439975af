"""From a spec to a trained model in a folder: what `planform train` does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from planform.backends.xla import Policy
from planform.compiler.ir import Graph, Input
from planform.compiler.ops.linear import Embed
from planform.compiler.parameters import count
from planform.compiler.program import Program, program
from planform.compiler.recipes import Recipe
from planform.compiler.types import TensorType
from planform.spec import Diagnostic, Spec, SpecError

from .checkpoint import steps as saved_steps
from .data import (
    ArrayData,
    DataSource,
    ImageData,
    LatentData,
    Share,
    SignalData,
    TextData,
    Tokenizer,
    View,
    load_arrays,
    load_pictures,
    load_signals,
    load_tokenizer,
    read_corpus,
)
from .distributed import processes
from .errors import UserError
from .functa.functaset import Functaset
from .mesh import Axes, check_mesh, default_axes, devices_of, make_mesh, mesh_text, provide_devices, rules_of, share_of
from .metrics import Metrics
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
    In a run of several processes all of them call it alike, after `distributed.begin`.

    Raises: SpecError, UserError.
    """
    folder = Path(folder)
    given: dict[str, Any] = {"steps": steps, "batch": batch, "accumulate": accumulate, "seed": seed}
    chosen = replace(program(spec), **{k: v for k, v in given.items() if v is not None})
    if length is not None:
        chosen = _with_length(chosen, length)
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
    data, words = open_data(chosen, share, folder, files, tokenizer)
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
    return replace(chosen, data=replace(chosen.data, arguments={**chosen.data.arguments, "length": length}))


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


def open_data(
    chosen: Program,
    share: Share,
    folder: Path,
    files: str | Path | Sequence[str | Path] | None,
    tokenizer: str | Path | None,
) -> tuple[DataSource, Tokenizer | None]:
    """The data of a program, and the tokenizer where they are text; `files` and `tokenizer` as `train` takes them.

    Raises: UserError.
    """
    recipe: Recipe = chosen.data
    a = recipe.arguments
    if recipe.name == "arrays":
        file = _one_file(files, recipe, "DATA.npz")
        found = load_arrays(file)
        missing = [f for f in recipe.fields if f not in found]
        if missing:
            raise UserError(f"{file} has no `{missing[0]}`", help=f"it has {', '.join(found)}")
        picked = {f: found[f] for f in recipe.fields}
        return ArrayData(picked, share, chosen.seed, portion=a["heldout"], source=str(file)), None
    if recipe.name == "images":
        source = _one_file(files, recipe, "IMAGES")
        pictures = load_pictures(source, _channels(chosen))
        return ImageData(pictures, recipe.fields, _view(a), share, chosen.seed, a["heldout"], str(source)), None
    if recipe.name == "signals":
        source = _one_file(files, recipe, "IMAGES")
        signals, apart = load_signals(source, *_sizes(chosen))
        return SignalData(signals, recipe.fields, share, chosen.seed, apart, a["heldout"], str(source)), None
    if recipe.name == "functaset":
        folder_ = _one_file(files, recipe, "FUNCTASET")
        sizes = _latent_sizes(chosen)
        return LatentData(Functaset.open(folder_), recipe.fields, sizes, share, chosen.seed), None
    words = load_tokenizer(tokenizer if tokenizer is not None else a["tokenizer"])
    for update in chosen.updates:
        _check_vocabulary(update.loss, recipe.fields[0], words)
    corpus = read_corpus(files if files is not None else a["files"], heldout=a["heldout"])
    return TextData(corpus, words, a["length"], share, folder / "data", chosen.seed, recipe.fields[0]), words


def _one_file(files: Any, recipe: Recipe, example: str) -> str | Path:
    """Where the data are, of a program that takes one file or folder. Raises: UserError."""
    given = files if files is not None else recipe.arguments["file"]
    if isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 1:
        given = given[0]
    if not isinstance(given, (str, Path)):
        many = "several are" if given else "none are"
        raise UserError(
            f"this program trains on one file or folder of {recipe.name}, {many} given", help=f"--files {example}"
        )
    return given


def _types(chosen: Program) -> dict[str, TensorType]:
    """Of what the losses read, by name."""
    return {v.name: v.type for u in chosen.updates for v in (*u.loss.inputs, *u.heldout.inputs)}


def _sizes(chosen: Program) -> tuple[int, int]:
    """(axes, channels) of the signals that a program takes. Raises: UserError where the spec leaves them open."""
    types = _types(chosen)
    found = []
    for name, dims in zip(chosen.data.fields[:2], ("points, axes", "points, channels")):
        t = types.get(name)
        if t is None or t.rank != 3 or not isinstance(t.sizes[-1], int):
            raise UserError(
                f"`{name}` must be float[batch, {dims}] with a known last size, it is {t or 'not used'}",
                help="signals(COORDS, VALUES) names the coordinates and what the signals are there",
            )
        found.append(t.sizes[-1])
    return found[0], found[1]


def _channels(chosen: Program) -> int:
    """Of the images that a program takes. Raises: UserError where the spec leaves them open."""
    name = chosen.data.fields[0]
    t = _types(chosen).get(name)
    if t is None or t.rank != 4 or not isinstance(t.sizes[-1], int):
        raise UserError(
            f"`{name}` must be float[batch, height, width, channels] with known channels, it is {t or 'not used'}",
            help="images(IMAGE, LABEL) names the images and what they show",
        )
    return t.sizes[-1]


def _view(arguments: Mapping[str, Any]) -> View:
    """Raises: UserError."""
    given = {k: arguments[k] for k in ("crop", "shift", "flip", "centre")}
    size = arguments["size"]
    for key in ("mean", "std"):
        if (value := arguments[key]) is not None:
            given[key] = tuple(map(float, value)) if isinstance(value, list) else (float(value),)
    return View(None if size is None else int(size), **given)


def _latent_sizes(chosen: Program) -> list[int | None]:
    """Sizes of one latent that a program takes, None where they are open."""
    t = _types(chosen).get(chosen.data.fields[0])
    if t is None:
        raise UserError(f"`{chosen.data.fields[0]}` is not used", help="functaset(LATENT) names the latents")
    return [n if isinstance(n, int) else None for n in t.sizes[1:]]


def _check_vocabulary(graph: Graph, name: str, words: Tokenizer) -> None:
    """Raises: UserError when the table that embeds the tokens is smaller than the vocabulary."""
    for node in graph.walk():
        tokens = node.inputs[0] if node.inputs else None
        if isinstance(node.op, Embed) and isinstance(tokens, Input) and tokens.name == name:
            dim = node.inputs[1].type.dims[0]
            if isinstance(dim.size, int) and dim.size < words.vocab_size:
                raise UserError(
                    f"the tokenizer {words.name} has {words.vocab_size} tokens, the model's table {dim.size}",
                    help=f"--set {dim.name}={words.vocab_size}" if dim.name else None,
                )


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
