"""The state of a run: parameters, the optimizers' states, and how far it got.

On disk it is a flat mapping of names: `parameters/lm.layer[0:4:2].query.weight`, `train/adam/mu/lm.layer[0:4:2]...`,
`train/rate/count`. The last part of a name says which layers an array holds, so a state that was saved under one
grouping of layers, on one mesh, is read under another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from planform.compiler.parameters import gather, layers, scatter

from .checkpoint import Checkpoints, read_arrays, read_meta
from .errors import UserError

PARAMETERS = "parameters"


@dataclass(frozen=True)
class State:
    """parameters  stored arrays by name
    optimizers  the optax state of each update, by the update's name
    step        how many steps were done
    """

    parameters: dict[str, jax.Array]
    optimizers: dict[str, Any]
    step: int = 0

    def named(self) -> dict[str, Any]:
        """Every array under its name on disk."""
        return _flat({PARAMETERS: self.parameters, **self.optimizers})[0]

    def logical(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Some parameters by their logical names, on the host. All processes must ask for the same."""
        wanted = set(names)
        held = {n: a for n, a in self.parameters.items() if wanted.intersection(layers(n))}
        split = {n: a for n, a in held.items() if not (a.is_fully_addressable or a.is_fully_replicated)}
        found = scatter(jax.device_get(held | multihost_utils.process_allgather(split, tiled=True)))
        return {n: found[n] for n in names}


def parameter_name(name: str) -> str | None:
    """The stored parameter that an array of a checkpoint is; None for an optimizer's."""
    head, _, rest = name.partition("/")
    return rest if head == PARAMETERS else None


def restore(
    checkpoints: Checkpoints, folder: Path, step: int, like: State, check: Callable[[Mapping[str, Any]], None]
) -> State:
    """The state of a checkpoint, bit for bit, grouped and placed as `like` is.

    check  looks at what was saved with it. Raises: UserError when it doesn't fit.
    """
    meta = read_meta(folder, step)
    check(meta)
    flat, tree = _flat({PARAMETERS: like.parameters, **like.optimizers})
    if set(meta["arrays"]) == set(flat):
        shapes = {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for n, a in flat.items()}
        found, _ = checkpoints.restore(step, shapes)
    else:
        found = _regrouped(read_arrays(folder, step), flat)
    both = jax.tree.unflatten(tree, [found[name] for name in flat])
    return State(both.pop(PARAMETERS), both, step)


def _flat(tree: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    leaves, structure = jax.tree_util.tree_flatten_with_path(dict(tree))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}, structure


def _regrouped(found: Mapping[str, np.ndarray], like: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Arrays saved under another grouping of layers, as `like` names, shapes and places them."""
    logical: dict[str, np.ndarray] = {}
    for name, array in found.items():
        prefix, _, stored = name.rpartition("/")
        logical.update({f"{prefix}/{n}": a for n, a in scatter({stored: array}).items()})
    out: dict[str, jax.Array] = {}
    for name, want in like.items():
        prefix, _, stored = name.rpartition("/")
        try:
            array = gather(stored, lambda n, prefix=prefix: logical.pop(f"{prefix}/{n}"))  # type: ignore[misc]
        except KeyError as missing:
            raise UserError(f"the checkpoint has no {missing.args[0]}", help=_OTHER) from None
        if array.shape != want.shape or array.dtype != want.dtype:
            theirs, mine = f"{array.dtype}{list(array.shape)}", f"{want.dtype}{list(want.shape)}"
            raise UserError(f"{name} is {theirs} in the checkpoint and {mine} in the model", help=_OTHER)
        out[name] = jax.make_array_from_callback(want.shape, want.sharding, array.__getitem__)  # type: ignore[arg-type]
    if logical:
        raise UserError(f"the model has no {next(iter(logical))}, the checkpoint has", help=_OTHER)
    return out


_OTHER = "use the spec it was trained with, or another folder for this run"
