"""Counts from symbolic shapes."""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
from typing import Any

from tests.evidence import row

IN_ALL = {"2b": 2_682_862_080, "9b": 8_579_977_216}
"""google-deepmind's own: the sum over `jax.eval_shape` of their init, which the row takes again."""

GRID = ("100m", "200m", "400m", "1.3b", "3b", "7b", "14b")
"""arXiv:2402.19427, table 2."""


def shown(name: str) -> int:
    command = [sys.executable, "-m", "planform", "show", name, "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    total: int = found["parameters"]["total"]
    return total


@row(
    "recurrentgemma",
    "counts",
    "2b 2,682,862,080 and 9b 8,579,977,216 parameters in all, as theirs have, unallocated; Griffin's and Hawk's grid",
    0.5,
)
def counts() -> tuple[Any, bool]:
    import jax
    import jax.numpy as jnp
    from recurrentgemma import common
    from recurrentgemma import jax as rg

    figure: dict[str, Any] = {}
    holds = True
    for size, want in IN_ALL.items():
        griffin = rg.Griffin(common.GriffinConfig.from_preset(common.Preset[f"RECURRENT_GEMMA_{size.upper()}_V1"]))
        empty = jnp.zeros((1, 2), jnp.int32)
        tree = jax.eval_shape(griffin.init, jax.random.key(0), empty, empty)["params"]
        theirs = sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
        figure[size] = {"ours": shown(f"recurrentgemma@{size}"), "theirs": theirs}
        holds &= figure[size] == {"ours": want, "theirs": want}
    for model in ("griffin", "hawk"):
        figure[model] = {size: shown(f"{model}@{size}") for size in GRID}
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {**figure, "peak_mb": round(peak)}, holds and peak < 1024
