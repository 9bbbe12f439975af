"""Samples of a generative model, and as pictures where it generates latents: what `planform functa sample` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from planform.spec import Spec

from ..errors import UserError
from ..run import parameters_of_run, read_run, spec_of_run
from .field import TILE, Field
from .functaset import FIELD, Functaset
from .images import check_images, in_rows, pixels, sheet, write_png

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
        how = self.sampler
        graph = optimise(how.step, "xla", "training")
        policy = Policy()
        stored = from_logical(lambda name: np.asarray(self.parameters[name]), graph, policy)
        step = lower(graph, policy)

        def draw(name: str, kind: str, key: jax.Array, batch: int) -> jax.Array:
            shape = how.type(name).shape({"batch": batch})
            if kind == "category":
                return jax.random.randint(key, shape, 0, int(how.classes[name]))
            return (jax.random.uniform if kind == "uniform" else jax.random.normal)(key, shape)

        def run(given: dict[str, jax.Array], key: jax.Array, steps: jax.Array, batch: int) -> jax.Array:
            start = jnp.zeros(how.type(how.variable).shape({"batch": batch}))
            if how.start != "zeros":
                start = draw(how.variable, how.start, jax.random.fold_in(key, steps), batch)

            def one(i: jax.Array, x: jax.Array) -> jax.Array:
                level = 1 - jnp.stack([i, i + 1]) / steps
                inputs = {how.variable: x, NOW: jnp.full(batch, level[0]), AFTER: jnp.full(batch, level[1]), **given}
                k = jax.random.fold_in(key, i)
                for n, (name, kind) in enumerate(how.draws.items()):
                    inputs[name] = draw(name, kind, jax.random.fold_in(k, n), batch)
                made: jax.Array = step(stored, {v: inputs[v] for v in how.names})[how.result]
                return made

            return lax.fori_loop(0, steps, one, start)

        return jax.jit(run, static_argnums=3)

    def sample(self, given: Mapping[str, np.ndarray], count: int, seed: int = 0, steps: int | None = None,
               batch: int = 64) -> np.ndarray:  # fmt: skip
        """Samples float32[count, ..]. `given` has [count, ..] of what the steps read (`Sampler.given`); the same seed
        gives the same samples. Raises: UserError for what isn't given."""
        how = self.sampler
        if missing := [n for n in how.given if n not in given]:
            raise UserError(f"sampling needs `{missing[0]}` for each sample", help="--label, where that is a class")
        made = []
        key = jax.random.key(seed)
        for first in range(0, count, batch):
            index = np.arange(first, first + batch) % count  # every batch is full, so that one shape is compiled
            some = {n: jnp.asarray(given[n])[index] for n in how.given}
            part = self._run(some, jax.random.fold_in(key, first), steps or how.steps, batch)
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
    """Samples latents with the model of a run, renders them by the field of the functaset it was trained on, and writes
    each as a PNG file in `out`, a sheet of all, and the latents as `samples.npz`.

    labels     classes to sample, in turn; all of them without any
    size       resolution; that of the functaset's signals without one
    functaset  where it is now; else where it was in training
    steps, seed, overrides  see `Generator`

    Raises: UserError, SpecError.
    """
    out, generator = Path(out), Generator.of_run(run, step, overrides)
    given = functaset or (read_run(run).get("files") or [None])[0]
    if given is None:
        raise UserError(f"{run} doesn't say on which functaset it was trained", help="--functaset FOLDER")
    found = Functaset.open(given)
    field = Field.of_run(found.folder / FIELD)
    check_images(field.axes, field.channels)
    how = generator.sampler
    classes = found.told["classes"]
    wrong = [c for c in labels if not 0 <= c < classes]
    if wrong:
        raise UserError(f"there is no class {wrong[0]}", help=f"{found.folder} has {classes}, from 0 on")
    chosen = np.resize(np.asarray(labels or range(max(classes, 1)), np.int32), count)
    inputs = {n: chosen for n in how.given if not how.type(n).is_float and how.type(n).rank == 1}
    latents = found.restored(generator.sample(inputs, count, seed, steps))
    shape = tuple(size or found.told["signals"]["shape"])
    if len(shape) != field.axes:
        raise UserError(f"a size of {len(shape)} numbers for signals of {field.axes} axes", help="HEIGHTxWIDTH")
    images = []
    for i, latent in enumerate(latents):
        image = pixels(field.render(latent[None], shape, tile)[0])
        write_png(out / "samples" / f"{i:04}.png", image)
        images.append(image)
    columns = len(set(labels)) if len(set(labels)) > 1 else classes or 8
    if shape[0] * shape[1] <= 1 << 18:
        write_png(out / "samples.png", sheet(in_rows(images, max(columns, 4))))
    np.savez(out / "samples.npz", latents=latents, labels=chosen)
    return {"folder": str(out), "count": count, "steps": steps or how.steps, "size": list(shape), "seed": seed}
