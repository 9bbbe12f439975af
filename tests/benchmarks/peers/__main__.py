"""python -m tests.benchmarks.peers ROW [--model gemma2 | --size m300] [--rounds 9] [--folder FOLDER]: what a row of
evidence measures.

Prints one JSON line; progress goes to standard error. The rows of evidence take the same settings from
PLANFORM_BENCH_ROUNDS, PLANFORM_BENCH_SIZE and PLANFORM_BENCH.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..sizes import SIZES
from .compare import USUAL, Options, Outcome, forms, load_memory, race
from .contenders import KINDS
from .quality import quantisation_error
from .races import RACES
from .training import train_memory, train_step

ROWS: dict[str, dict[str, Callable[[Options], Outcome]]] = {
    spec: {**{name: partial(race, name) for name in races}, "train_step": train_step} for spec, races in RACES.items()
}
ROWS["gemma2"] |= {
    "load_memory": load_memory,
    "quantisation_error": quantisation_error,
    "train_memory": train_memory,
}


def main() -> None:
    given = Options()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[-1].strip())
    names = dict.fromkeys(name for rows in ROWS.values() for name in rows)
    parser.add_argument("row", choices=[*names, "models"], help="`models` only makes what the other rows need")
    parser.add_argument("--rounds", type=int, default=given.rounds)
    parser.add_argument("--model", choices=USUAL, default=given.spec, help="the family, in the row's own size")
    parser.add_argument("--size", choices=SIZES, help="another size, and of its family")
    parser.add_argument("--folder", type=Path, default=given.folder, help="where models are kept")
    args = parser.parse_args()
    spec = SIZES[args.size].spec if args.size else args.model
    options = replace(Options(spec, args.rounds, folder=args.folder), **({"size": args.size} if args.size else {}))
    if args.row == "models":
        wanted = dict.fromkeys(n for r in RACES[spec].values() for n in r.contenders)
        paths, missing = forms({n: KINDS[n][1:] for n in wanted}, options)
        print(json.dumps({"made": {name: str(path) for name, path in paths.items()}, "missing": missing}))
        return
    if args.row not in ROWS[spec]:
        parser.error(f"no row {args.row} of {spec}; there are: {', '.join(ROWS[spec])}")
    figure, holds = ROWS[spec][args.row](options)
    print(json.dumps({"row": args.row, "figure": figure, "holds": holds}))


if __name__ == "__main__":
    main()
