"""From signals to a functaset: what `planform functa encode` does."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data import Share, SignalData, load_signals
from ..errors import UserError
from ..metrics import LINES, read_metrics
from ..run import WEIGHTS, read_run, write_run
from ..tensor_files import TensorWriter
from . import functaset
from .curves import curve
from .field import Field
from .functaset import CURVE, FIELD, SPLITS, Functaset
from .images import sheet, write_png

SHARD = 4096
"""Latents in a file: what a kill loses at most."""

FURTHER = 4
"""How many times as many steps as in training the curve goes on for."""

PSNR, TITLE = "psnr", "PSNR of held-out signals, dB"

Told = Callable[[int, int, float], None]
"""(signals done, signals in all, signals a second)"""


def encode(
    run: str | Path,
    folder: str | Path,
    *,
    files: str | Path | None = None,
    steps: int | None = None,
    step: int | None = None,
    batch: int = 64,
    shard: int = SHARD,
    limit: int | None = None,
    overrides: Sequence[str] = (),
    tell: Told = lambda *_: None,
) -> Functaset:
    """Fits the latent of every signal and writes them; stopped anywhere, the same call goes on with the next file.

    files      signals as `load_signals` takes them; else those that the run was trained on
    steps      of the inner loop, in place of the spec's: test-time fitting with more
    step       of the run's checkpoint; the newest without one
    batch      signals that are fitted at once
    shard      latents in a file
    limit      the first so many signals of each split only

    Signals that training held out stay so: they are the split `heldout`. Raises: UserError, SpecError.
    """
    run, folder = Path(run), Path(folder)
    field = Field.of_run(run, step, overrides)
    data = signals_of(run, field, files)
    told = data.describe()
    sizes = {s: min(len(data.part(s)), limit or len(data.part(s))) for s in SPLITS}
    inner = field.update.inner
    assert inner is not None
    plan = {
        "version": functaset.VERSION,
        "field": field.fingerprint(),
        "fitting": {"steps": steps or inner.steps, "overrides": list(overrides)},
        "signals": {"shape": list(data.shape), "rows": sizes, "fingerprint": told["fingerprint"]},
        "latent": {"name": field.variable, "shape": list(field.shape), "shard": shard},
    }
    functaset.begin(folder, plan)
    if functaset.is_functaset(folder):
        return Functaset.open(folder)
    fit = field.fitter(data.coords, steps)
    done = sum(
        len(range(*bounds)) for s in SPLITS for n, bounds in _shards(sizes[s], shard) if _whole(folder, s, n, bounds)
    )
    total, began, fresh = sum(sizes.values()), None, 0
    tell(done, total, 0.0)
    for split in SPLITS:
        rows = data.part(split)
        for number, bounds in _shards(sizes[split], shard):
            if _whole(folder, split, number, bounds):
                continue
            made: dict[str, list[np.ndarray]] = {}
            for first in range(*bounds, batch):
                index = np.arange(first, min(first + batch, bounds[1]))
                filled = np.concatenate([index, np.full(batch - len(index), index[-1])])
                given = data.batch_of(rows.take(filled))
                found = fit(given)
                found["latent"] = found.pop(field.variable)
                if data.labels is not None and data.labels in given:
                    found["labels"] = given[data.labels]
                found["index"] = rows.order(filled)
                for name, array in found.items():
                    made.setdefault(name, []).append(array[: len(index)])
                if began is None:  # the first batch was compiled
                    began = time.perf_counter()
                else:
                    fresh += len(index)
                done += len(index)
                tell(done, total, fresh / max(time.perf_counter() - began, 1e-9))
            functaset.write_shard(
                folder / functaset.shard_name(split, number), {n: np.concatenate(a) for n, a in made.items()}
            )
    _keep_field(run, field, folder / FIELD, overrides)
    by_steps = _by_steps(field, data, batch, max(FURTHER * inner.steps, steps or 0))
    _draw_curves(run, by_steps, inner.steps, folder / CURVE)
    functaset.finish(
        folder, {**plan, "source": told["source"], **_summary(folder, sizes, shard), "psnr_by_steps": by_steps}
    )
    return Functaset.open(folder)


def signals_of(run: str | Path, field: Field, files: str | Path | None = None) -> SignalData:
    """The signals that a run was trained on, or others, split in training and held-out ones as it splits them.

    Raises: UserError.
    """
    recipe = field.chosen.data
    given: Any = files or (read_run(run).get("files") or [recipe.arguments["file"]])[0]
    if given is None:
        raise UserError("the run doesn't say what it was trained on", help="--files IMAGES")
    signals, apart = load_signals(given, field.axes, field.channels)
    names = (*recipe.fields[:2], *(["labels"] if "labels" in signals else []))
    portion = recipe.arguments["heldout"]
    return SignalData(signals, names, Share(1), 0, apart, portion, str(Path(given).resolve()))


def _shards(rows: int, shard: int) -> list[tuple[int, tuple[int, int]]]:
    """(number, (first, end)) of each file of a split."""
    return [(n, (first, min(first + shard, rows))) for n, first in enumerate(range(0, rows, shard))]


def _whole(folder: Path, split: str, number: int, bounds: tuple[int, int]) -> bool:
    return functaset.shard_rows(folder / functaset.shard_name(split, number)) == len(range(*bounds))


def _summary(folder: Path, sizes: dict[str, int], shard: int) -> dict[str, Any]:
    """Rows, means of the metrics and statistics, a shard in memory at a time."""
    splits: dict[str, Any] = {}
    count, total, squares = 0, np.zeros(()), np.zeros(())
    classes = 0
    for split in SPLITS:
        shards = _shards(sizes[split], shard)
        sums: dict[str, float] = {}
        for number, _ in shards:
            one = functaset.read_shard(folder / functaset.shard_name(split, number))
            for name, array in one.items():
                if name not in ("latent", "index", "labels"):
                    sums[name] = sums.get(name, 0.0) + float(array.sum(dtype=np.float64))
            classes = max(classes, int(one["labels"].max(initial=-1)) + 1 if "labels" in one else 0)
            if split == "train":
                rows = one["latent"].reshape(-1, one["latent"].shape[-1]).astype(np.float64)
                count, total, squares = count + len(rows), total + rows.sum(0), squares + np.square(rows).sum(0)
        means = {n: v / max(sizes[split], 1) for n, v in sums.items()}
        splits[split] = {"rows": sizes[split], "shards": len(shards), "means": means}
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-12))
    return {"splits": splits, "classes": classes, "statistics": {"mean": mean.tolist(), "std": std.tolist()}}


def _by_steps(field: Field, data: SignalData, batch: int, steps: int) -> list[float]:
    """The mean PSNR of a batch of held-out signals after 1, 2 .. steps of the inner loop, where it is measured."""
    rows = data.part("heldout")
    given = data.batch_of(rows.take(np.arange(min(batch, len(rows)))))
    return [float(found[PSNR].mean()) for found in field.descent(data.coords, given, steps) if PSNR in found]


def _draw_curves(run: Path, by_steps: Sequence[float], trained: int, file: Path) -> None:
    """The PSNR of held-out signals over the run's training, and over the steps that fit a latent, where it was
    measured."""
    lines = read_metrics(run) if (run / LINES).is_file() else []
    points = [(line["step"], line[PSNR]) for line in lines if line.get(PSNR) is not None]
    charts = [curve(points, TITLE, "training steps")] if len(points) > 1 else []
    if by_steps:
        charts.append(curve(list(enumerate(by_steps, 1)), TITLE, f"steps to fit a latent (in training: {trained})"))
    if charts:
        write_png(file, sheet([charts]))


def _keep_field(run: Path, field: Field, target: Path, overrides: Sequence[str]) -> None:
    """The field as a run's folder of its own: what decodes the latents, wherever they go."""
    if target.exists():
        return
    stage = target.with_name(f".{target.name}.part")
    shutil.rmtree(stage, ignore_errors=True)
    with TensorWriter(stage / WEIGHTS) as writer:
        for name in sorted(field.parameters):
            writer.add(name, np.asarray(field.parameters[name]))
    facts = {k: v for k, v in read_run(run).items() if k in ("data", "files", "batch", "seed")}
    told = read_run(run)["spec"]
    write_run(stage, field.spec, [*told["overrides"], *overrides], facts)
    stage.rename(target)
