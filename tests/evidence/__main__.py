"""python -m tests.evidence TOPIC [--only ROW] [--list]: one JSON line a row; exit 1 if one falls short."""

from __future__ import annotations

import argparse
import json
import pkgutil
import sys
import time
import traceback

import tests.evidence as evidence


def main() -> int:
    topics = [m.name for m in pkgutil.iter_modules(evidence.__path__) if m.ispkg]
    parser = argparse.ArgumentParser(prog="python -m tests.evidence", description=__doc__)
    parser.add_argument("topic", choices=topics)
    parser.add_argument("--only", action="append", metavar="ROW", help="only this row (may be repeated)")
    parser.add_argument("--list", action="store_true", help="name the rows and their aims, run nothing")
    options = parser.parse_args()
    rows = evidence.rows(options.topic)
    unknown = set(options.only or []) - {r.name for r in rows}
    if unknown:
        parser.error(f"no row {', '.join(sorted(unknown))}; there are: {', '.join(r.name for r in rows)}")
    chosen = [r for r in rows if not options.only or r.name in options.only]
    if options.list:
        for r in chosen:
            print(json.dumps({"row": r.name, "aim": r.aim, "minutes": r.minutes, "command": r.command}))
        return 0
    short = 0
    for r in chosen:
        start = time.monotonic()
        try:
            figure, holds = r.measure()
        except Exception as e:
            traceback.print_exc()
            figure, holds = f"{type(e).__name__}: {e}", False
        short += holds is False
        line = {
            "row": r.name,
            "aim": r.aim,
            "figure": figure,
            "holds": holds,
            "command": r.command,
            "seconds": round(time.monotonic() - start, 1),
        }
        print(json.dumps(line), flush=True)
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
