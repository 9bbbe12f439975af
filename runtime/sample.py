"""Samples of a generative model, as pictures where they are some: what `planform sample` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from planform.backends.xla import Policy, from_logical, lower
from planform.compiler.elaborate import AFTER, NOW, Sampler, sampler
from planform.compiler.passes.pipeline import optimise
from planform.compiler.program import program
from planform.spec import Spec

from .data import View
from .errors import UserError
from .files import whole
from .functa.decode import draw
from .functa.field import TILE, Field
from .functa.functaset import FIELD, Functaset
from .functa.images import check_images, in_rows, pixels, sheet, write_png
from .opening import view_of
from .run import parameters_of_run, read_run, spec_of_run

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Generator:
    """The sampler of a trained model; `parameters` by logical name."""

    spec: Spec
    parameters: Mapping[str, np.ndarray]

    @staticmethod
    def of_run(run: str | Path, step: int | None = None, overrides: Sequence[str] = ()) -> Generator:
        """`overrides` of the spec change no parameter: `guidance=3`, `eta=1`. Raises: UserError, SpecError."""
        return Generator(spec_of_run(run, overrides), parameters_of_run(run, step))

    @cached_property
    def sampler(self) -> Sampler:
        return sampler(self.spec)

    @cached_property
    def _run(self) -> Any:
        """(given, key, number of steps, batch) -> samples [batch, ..]"""
        how = self.sampler
        graph = optimise(how.graph, "xla", "training")
        policy = Policy()
        stored = from_logical(lambda name: np.asarray(self.parameters[name]), graph, policy)
        lowered = lower(graph, policy)

        def draw(name: str, kind: str, key: jax.Array, batch: int) -> jax.Array:
            shape = how.type(name).shape({"batch": batch})
            if kind == "category":
                return jax.random.randint(key, shape, 0, int(how.classes[name]))
            return (jax.random.uniform if kind == "uniform" else jax.random.normal)(key, shape)

        def made(inputs: Mapping[str, jax.Array], key: jax.Array, batch: int) -> jax.Array:
            drawn = {name: draw(name, kind, jax.random.fold_in(key, n), batch)
                     for n, (name, kind) in enumerate(how.draws.items())}  # fmt: skip
            known = {**inputs, **drawn}
            found: jax.Array = lowered(stored, {v: known[v] for v in how.names})[how.result]
            return found

        def run(given: dict[str, jax.Array], key: jax.Array, steps: jax.Array, batch: int) -> jax.Array:
            if how.steps is None:
                return made(given, key, batch)
            variable, kind = how.steps.variable, how.steps.start
            start = jnp.zeros(how.type(variable).shape({"batch": batch}))
            if kind != "zeros":
                start = draw(variable, kind, jax.random.fold_in(key, steps), batch)

            def one(i: jax.Array, x: jax.Array) -> jax.Array:
                level = 1 - jnp.stack([i, i + 1]) / steps
                inputs = {variable: x, NOW: jnp.full(batch, level[0]), AFTER: jnp.full(batch, level[1]), **given}
                return made(inputs, jax.random.fold_in(key, i), batch)

            return lax.fori_loop(0, steps, one, start)

        return jax.jit(run, static_argnums=3)

    def steps(self, asked: int | None = None) -> int | None:
        """How many steps a sample takes; None where it is made at once. Raises: UserError for steps that aren't."""
        if self.sampler.steps is not None:
            return asked or self.sampler.steps.count
        if asked is not None:
            raise UserError(f"samples of {self.spec.name} are made at once, not in steps", help="leave --steps out")
        return None

    def sample(self, given: Mapping[str, np.ndarray], count: int, seed: int = 0, steps: int | None = None,
               batch: int = 64) -> np.ndarray:  # fmt: skip
        """Samples float32[count, ..]. `given` has [count, ..] of what they are made from beside draws
        (`Sampler.given`); the same seed gives the same samples. Raises: UserError for what isn't given."""
        how, steps = self.sampler, self.steps(steps)
        if missing := [n for n in how.given if n not in given]:
            raise UserError(f"sampling needs `{missing[0]}` for each sample", help="--label, where that is a class")
        made = []
        key = jax.random.key(seed)
        for first in range(0, count, batch):
            index = np.arange(first, first + batch) % count  # every batch is full, so that one shape is compiled
            some = {n: jnp.asarray(given[n])[index] for n in how.given}
            part = self._run(some, jax.random.fold_in(key, first), steps or 1, batch)
            made.append(np.asarray(part)[: count - first])
        return np.concatenate(made)


def sample(
    run: str | Path,
    out: str | Path,
    *,
    count: int = 64,
    labels: Sequence[int] = (),
    size: Sequence[int] | None = None,
    functaset: str | Path | None = None,
    steps: int | None = None,
    seed: int = 0,
    step: int | None = None,
    overrides: Sequence[str] = (),
    tile: int = TILE,
) -> dict[str, Any]:
    """Samples with the model of a run what its data are, and writes `samples.npz` in `out`; where they are pictures, or
    latents that the field of their functaset renders, also each as a PNG file and a sheet of all.

    labels     classes to sample, in turn; all of them without any
    size       resolution of what a field renders; that of the functaset's signals without one
    functaset  where it is now; else where it was in training
    steps, seed, overrides  see `Generator`

    The arrays of `samples.npz` are `images`, uint8 as in the PNG files, `latents`, as the field takes them, or
    `samples`, and the `labels` of those that have a class. Raises: UserError, SpecError.
    """
    out, generator = Path(out), Generator.of_run(run, step, overrides)
    steps = generator.steps(steps)
    told = read_run(run)
    classes = (told.get("data") or {}).get("classes", 0)
    chosen = _labels(generator.sampler, labels, classes, count)
    finish = _finish(generator, told, size, functaset, tile)
    name, kept, shape, picture = finish(generator.sample(chosen, count, seed, steps))
    drawn = [picture(i, out / "samples" / f"{i:04}.png") for i in range(count)] if picture else []
    if shown := [image for image in drawn if image is not None]:
        columns = len(set(labels)) if len(set(labels)) > 1 else classes or 8
        write_png(out / "samples.png", sheet(in_rows(shown, max(columns, 4))))
    arrays: dict[str, Any] = {name: kept, **({"labels": next(iter(chosen.values()))} if chosen else {})}
    with whole(out / "samples.npz", parents=True) as f:
        np.savez(f, **arrays)
    return {"folder": str(out), "count": count, "kind": name, "steps": steps, "size": list(shape), "seed": seed}


def _labels(how: Sampler, labels: Sequence[int], classes: int, count: int) -> Arrays:
    """Classes int32[count] for each input that is one. Raises: UserError for one that there isn't."""
    names = [n for n in how.given if not how.type(n).is_float and how.type(n).rank == 1]
    if labels and not names:
        raise UserError("this model samples no classes", help="leave --label out")
    wrong = [c for c in labels if c < 0 or (classes and c >= classes)]
    if wrong:
        raise UserError(f"there is no class {wrong[0]}", help=f"the data have {classes}, from 0 on")
    if not (labels or classes):
        return {}
    return dict.fromkeys(names, np.resize(np.asarray(labels or range(classes), np.int32), count))


Draw = Callable[[int, Path], np.ndarray | None]
"""Writes the picture of a sample and returns its pixels, uint8[height, width, channels], if a sheet can show them."""
Finish = Callable[[np.ndarray], tuple[str, np.ndarray, Sequence[int], Draw | None]]
"""From samples to what is kept of them, with its name; the size of one, and what draws it, if it is a picture."""


def _finish(
    generator: Generator, told: Mapping[str, Any], size: Sequence[int] | None, functaset: str | Path | None, tile: int
) -> Finish:
    """What becomes of samples, by the data that the model learned from. Raises: UserError."""
    spec, t = generator.spec, generator.sampler.type()
    data = program(spec).data if spec.train else None
    if data is not None and data.name == "functaset":
        given = functaset or (told.get("files") or [data.arguments["file"]])[0]
        if given is None:
            raise UserError("the run doesn't say on which functaset it was trained", help="--functaset FOLDER")
        return _latents(Functaset.open(given), size, tile)
    for option, value in (("--size", size), ("--functaset", functaset)):
        if value is not None:
            raise UserError("only latents of a functaset are rendered", help=f"leave {option} out")
    if data is not None and data.name == "images" and t.rank == 4 and t.sizes[-1] in (1, 3):
        return _images(view_of(data.arguments))
    return lambda made: ("samples", made, made.shape[1:], None)


def _images(view: View) -> Finish:
    def finish(made: np.ndarray) -> tuple[str, np.ndarray, Sequence[int], Draw]:
        images = pixels(view.restored(made))

        def draw(i: int, file: Path) -> np.ndarray:
            write_png(file, images[i])
            return images[i]  # type: ignore[no-any-return]

        return "images", images, images.shape[1:3], draw

    return finish


def _latents(found: Functaset, size: Sequence[int] | None, tile: int) -> Finish:
    """Raises: UserError."""
    field = Field.of_run(found.folder / FIELD)
    check_images(field.axes, field.channels)
    shape = tuple(size or found.told["signals"]["shape"])
    if len(shape) != field.axes:
        raise UserError(f"a size of {len(shape)} numbers for signals of {field.axes} axes", help="HEIGHTxWIDTH")

    def finish(made: np.ndarray) -> tuple[str, np.ndarray, Sequence[int], Draw]:
        latents = found.restored(made)
        return "latents", latents, shape, lambda i, file: draw(file, field, latents[i], shape, tile)

    return finish
