"""How well a trained model does on text that it never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from planform.backends.xla import Policy
from planform.compiler.program import Program, program
from planform.spec import Spec

from .checkpoint import steps
from .data import TextData
from .mesh import devices_of, make_mesh, provide_devices, rules_of, share_of
from .opening import open_data
from .run import parameters_of_run, read_run, spec_of_run
from .updates import Layout, Updates, means
from .uses import get, not_given, of_run

Values = dict[str, Any]


def evaluate_run(
    folder: str | Path,
    *,
    files: str | Path | Sequence[str | Path] | None = None,
    batches: int | None = None,
    step: int | None = None,
    mesh: dict[str, int] | None = None,
    overrides: Sequence[str] = (),
    uses: Mapping[str, str | Path] | None = None,
) -> Values:
    """The losses of a run on held-out data, and for text bits per byte beside those of a bigram model.

    files      other text to measure on (its held-out part); else what the run trained on
    batches    at most so many, of the run's size; else what its program says
    step       of the checkpoint; the newest without one
    overrides  of the spec, as far as no parameter changes: `window=1024`
    uses       where the weights of used specs are, if they were moved since the run
    Returns {"step", "heldout_loss", "bits_per_byte", "bigram_bits_per_byte", ..}. Raises: UserError, SpecError.
    """
    folder = Path(folder)
    told, spec = read_run(folder), spec_of_run(folder, overrides)
    chosen = as_it_ran(spec, told)
    provide_devices(None if mesh is None else devices_of(mesh))
    layout = Layout(make_mesh(mesh or {"data": 1}), rules_of(spec), Policy())
    share = share_of(layout.mesh, layout.rules, chosen.batch)
    words = folder / "tokenizer"
    given = files if files is not None else told.get("files")
    data, _ = open_data(chosen, share, folder, given, words if words.is_dir() else None)
    frozen = get(of_run(folder, spec, [u.heldout for u in chosen.updates], uses or {}))
    return measure(chosen, layout, data, parameters_of_run(folder, step), batches, frozen) | {
        "step": steps(folder)[-1] if step is None else step
    }


def measure(
    chosen: Program,
    layout: Layout,
    data: Any,
    logical: Mapping[str, Any],
    batches: int | None = None,
    frozen: Callable[[str], np.ndarray] = not_given,
) -> Values:
    """Held-out losses and metrics of parameters by logical name, each a mean over all entries that have a target;
    `frozen` gives those of used specs, where a loss needs them."""
    count = batches or chosen.evaluate_batches
    updates = Updates(replace(chosen, updates=tuple(replace(u, loss=u.heldout) for u in chosen.updates)), layout)
    parameters, others = updates.place(lambda n: logical[n]), updates.place_frozen(frozen)
    values: Values = {}
    for update in updates.each:
        found = []
        for number, batch in enumerate(data.heldout(count)):
            placed = {
                n: jax.make_array_from_process_local_data(s, batch[n]) for n, s in update.inputs.items() if n in batch
            }
            found.append(update.measure(parameters, placed, others, number))
        prefix = f"{update.name}/" if len(updates.each) > 1 else ""
        values.update({prefix + n: v for n, v in means(found).items()})
    if further := getattr(data, "measure", None):
        data.follow(0, lambda names: {n: logical[n] for n in names})
        values.update(further(count))
    if isinstance(data, TextData) and len(updates.each) == 1 and updates.each[0].per_target:
        values["bits_per_byte"] = data.bits_per_byte(values["heldout_loss"])
        values["bigram_bits_per_byte"] = data.bigram_bits_per_byte(count)
    return values


def as_it_ran(spec: Spec, told: dict[str, Any]) -> Any:
    """The program with the choices that the run was made with."""
    chosen = program(spec)
    chosen = replace(chosen, **{k: told[k] for k in ("batch", "accumulate", "seed") if k in told})
    data = told.get("data", {})
    return chosen.having(
        **{k: data[k] for k in ("environment", "length") if data.get(k) and k in chosen.data.arguments}
    )
