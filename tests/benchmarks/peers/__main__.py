"""python -m tests.benchmarks.peers ROW [--rounds 9] [--size m300] [--folder FOLDER]: what a row of evidence measures.

Prints one JSON line; progress goes to standard error. The rows of evidence take the same settings from
PLANFORM_BENCH_ROUNDS, PLANFORM_BENCH_SIZE and PLANFORM_BENCH.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..sizes import SIZES
from .compare import RACES, Options, Outcome, forms, load_memory, race
from .contenders import KINDS
from .quality import quantisation_error
from .training import train_memory, train_step

ROWS: dict[str, Callable[[Options], Outcome]] = {
    **{r.name: partial(race, r) for r in RACES},
    "load_memory": load_memory,
    "quantisation_error": quantisation_error,
    "train_step": train_step,
    "train_memory": train_memory,
}


def main() -> None:
    given = Options()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("row", choices=[*ROWS, "models"], help="`models` only makes what the other rows need")
    parser.add_argument("--rounds", type=int, default=given.rounds)
    parser.add_argument("--size", choices=SIZES, default=given.size)
    parser.add_argument("--folder", type=Path, default=given.folder, help="where models and rounds are kept")
    args = parser.parse_args()
    options = Options(args.rounds, args.size, args.folder)
    if args.row == "models":
        paths, missing = forms(KINDS, options)
        print(json.dumps({"made": {name: str(path) for name, path in paths.items()}, "missing": missing}))
        return
    figure, holds = ROWS[args.row](options)
    print(json.dumps({"row": args.row, "figure": figure, "holds": holds}))


if __name__ == "__main__":
    main()
