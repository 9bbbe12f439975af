"""google-deepmind's own folders: flax parameters as an Orbax checkpoint, {"params": {"blocks.0": {..}}}.

They have no configuration: the shapes say which of a spec's sizes it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from planform.compiler.weights import WeightsMap, weights_map
from planform.spec import Spec, SpecError, load

from ..errors import UserError
from .format import Format, Found, Tensors, faults, lines, sizes
from .orbax_folder import OrbaxFolder, is_orbax, write_orbax

ROOT = "params/"
"""Where variables of flax keep parameters. A name in a spec's map is the path below it."""


class DeepMind(Format):
    name = "deepmind"
    layout = "google-deepmind's layout"

    def recognises(self, folder: Path) -> bool:
        return is_orbax(folder)

    def read(self, folder: Path, name: str, overrides: Sequence[str]) -> Found:
        tensors = OrbaxFolder(folder, ROOT)
        spec, weights = fit(name, tensors, overrides)
        # As it is published, the tokenizer lies beside the folder.
        beside = next((f for f in (folder, folder.absolute().parent) if (f / "tokenizer.model").is_file()), folder)
        return Found(spec, overrides, weights, tensors, beside)

    def write(
        self, folder: Path, weights: WeightsMap, get: Callable[[str], np.ndarray], facts: Mapping[str, Any]
    ) -> None:
        write_orbax(folder, {ROOT + t.name: partial(t.to_theirs, get) for t in weights.tensors})


def fit(name: str, found: Tensors, overrides: Sequence[str]) -> tuple[Spec, WeightsMap]:
    """The spec at the one size whose shapes are those of a checkpoint.

    Raises: UserError where none fits, naming the nearest and what differs, or where several do; SpecError.
    """
    offered = sizes(name)
    tried: list[tuple[list[str], Spec, WeightsMap]] = []
    refused: SpecError | None = None
    for size in offered:
        try:
            spec = load(name, size, overrides)
            weights = weights_map(spec, DeepMind.name)
        except SpecError as e:  # what is set may fit other sizes
            refused = refused or e
            continue
        tried.append((faults(found, weights), spec, weights))
    if not tried and refused:
        raise refused
    fitting = [(spec, weights) for listed, spec, weights in tried if not listed]
    if len(fitting) == 1:
        return fitting[0]
    plain = fitting[0][0].name if fitting else tried[0][1].name
    if fitting:
        names = [f"{plain}@{spec.size}" for spec, _ in fitting]
        raise UserError(
            f"{found.folder} fits {' and '.join(names)}: their tensors have the same shapes",
            help=f"say which it is: --spec {names[0]}",
        )
    listed, nearest, _ = min(tried, key=lambda t: len(t[0]))
    label = f"{plain}@{nearest.size}" if nearest.size else plain
    which = f"fit no size of {plain}, the nearest is {label}" if len(offered) > 1 else f"don't fit {label}"
    raise UserError(
        f"the tensors of {found.folder} {which}:{lines(listed)}",
        help="for a size that the spec doesn't have, set its dims: --set d=512",
    )
