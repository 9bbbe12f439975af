"""Errors: the catalogue, and thousands of broken specs."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import resource
import time
from pathlib import Path
from typing import Any

from tests.evidence import row

ROOT = Path(__file__).parents[3]
MUTATIONS = 5_000
SECONDS, BYTES = 5.0, 2 << 30


@row("main_job", "error_catalogue", "at least 40 wrong specs, each with its code, line and column as expected", 0.3)
def error_catalogue() -> tuple[Any, bool]:
    from planform.spec import render
    from tests.errors.test_catalogue import CASES, FOLDER, check, places

    wrong, codes = [], set()
    with contextlib.chdir(FOLDER):
        for case in CASES:
            found, expected = check(case), case.with_suffix(".txt").read_text()
            codes |= {d.code for d in found}
            if not places(expected) or "\n\n".join(render(d) for d in found) + "\n" != expected:
                wrong.append(case.stem)
    return {"cases": len(CASES), "codes": len(codes), "wrong": wrong}, len(CASES) >= 40 and not wrong


def mutate(text: str, rng: random.Random) -> str:
    """One to four random edits: characters, lines, words, punctuation, and pieces of the text itself."""
    for _ in range(rng.randint(1, 4)):
        i = rng.randrange(len(text) + 1)
        j = min(len(text), i + rng.randint(1, 12))
        lines = text.splitlines(keepends=True)
        kind = rng.randrange(8)
        if kind == 0:
            text = text[:i] + text[j:]
        elif kind == 1:
            text = text[:i] + rng.choice("()[]{}:,^>+-*/#\"'|&!@%\t\n 0123456789\x00é=.") + text[i:]
        elif kind == 2 and lines:
            k = rng.randrange(len(lines))
            text = "".join([*lines[:k], *lines[k + 1 :]])
        elif kind == 3 and lines:
            rng.shuffle(lines) if rng.random() < 0.1 else lines.insert(rng.randrange(len(lines)), rng.choice(lines))
            text = "".join(lines)
        elif kind == 4:
            words = [
                "none",
                "id",
                "in",
                "true",
                "layers",
                "d",
                "lm",
                "table",
                "cycle",
                "1e99",
                "-1",
                "0",
                "norm",
                "tokens",
            ]
            text = text[:i] + rng.choice(words) + text[j:]
        elif kind == 5:
            a = rng.randrange(len(text) + 1)
            text = text[:i] + text[a : a + rng.randint(1, 60)] + text[i:]
        elif kind == 6:
            text = text.replace(rng.choice(text.split() or ["x"]), rng.choice(text.split() or ["y"]), 1)
        else:
            text = text[:i] + rng.choice(["{" * 40, "((" * 40, "\n  " * 3, ">> " * 5, "^ " * 3, "[" * 90]) + text[i:]
    return text


def try_many(seed: int, number: int, file: str, out: Any) -> None:
    """Checks `number` mutations of a spec; reports the worst time, the peak memory, and all failures."""
    import planform.spec as spec
    from planform.compiler.check import check

    limit = BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit * 4, limit * 4))  # address space; the peak is judged below
    rng, text = random.Random(seed), Path(file).read_text()
    worst, failures, valid = 0.0, [], 0
    for _ in range(number):
        broken = mutate(text, rng)
        start = time.monotonic()
        try:
            found = check(spec.load_text(broken, "mutant.yaml", size=rng.choice(["small", "2b"])))
            valid += not any(d.severity == "error" for d in found)
        except spec.SpecError:
            pass
        except BaseException as e:  # noqa: BLE001 - anything else would have been a traceback
            failures.append((f"{type(e).__name__}: {e}"[:300], broken))
        worst = max(worst, time.monotonic() - start)
    out.put((worst, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, failures, valid))


def fuzz(total: int) -> dict[str, Any]:
    """Mutations of every shipped spec, in two processes."""
    files = sorted(str(p) for p in (ROOT / "models").rglob("*.yaml"))
    context = multiprocessing.get_context("spawn")
    results = []
    share = -(-total // (2 * len(files)))
    for file in files:
        queue = context.Queue()
        workers = [context.Process(target=try_many, args=(seed, share, file, queue)) for seed in (1, 2)]
        for w in workers:
            w.start()
        results += [queue.get(timeout=3600) for _ in workers]
        for w in workers:
            w.join()
    return {
        "mutations": share * 2 * len(files),
        "still_valid": sum(r[3] for r in results),
        "tracebacks": sum(len(r[2]) for r in results),
        "slowest_s": round(max(r[0] for r in results), 2),
        "peak_mb": round(max(r[1] for r in results) / 2**20),
        "examples": [f[0] for r in results for f in r[2]][:5],
    }


@row(
    "main_job", "error_fuzz", f"{MUTATIONS} mutated specs: valid or diagnostics; no traceback, hang > 5 s or > 2 GB", 6
)
def error_fuzz() -> tuple[Any, bool]:
    figure = fuzz(MUTATIONS)
    return figure, figure["tracebacks"] == 0 and figure["slowest_s"] <= SECONDS and figure["peak_mb"] <= BYTES / 2**20
