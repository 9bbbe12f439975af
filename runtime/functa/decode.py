"""From a functaset to pictures of any resolution: what `planform functa decode` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import write_json
from .encode import signals_of
from .field import TILE, Field, psnr
from .functaset import FIELD, Functaset
from .images import SHEET, check_images, enlarged, in_rows, pixels, sheet, stream_png, write_png

COLUMNS = 8


def decode(
    folder: str | Path,
    out: str | Path,
    *,
    split: str = "heldout",
    rows: tuple[int, int] = (0, 16),
    sizes: Sequence[Sequence[int]] = (),
    files: str | Path | None = None,
    tile: int = TILE,
    npy: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Renders latents of a functaset as PNG files (`npy`: as .npy arrays) in `out`, a folder for each resolution, and a
    sheet of all; with the signals at hand, beside them, and the PSNR of each at its own resolution.

    rows   which of the split, first and end
    sizes  resolutions, one number an axis; the signals' own without any
    files  where the signals are now; else where they were when they were encoded
    tile   points in memory at once

    Returns what `psnr.json` says. Raises: UserError.
    """
    found, out = Functaset.open(folder), Path(out)
    field = Field.of_run(found.folder / FIELD)
    own = tuple(found.told["signals"]["shape"])
    if not npy:
        check_images(field.axes, field.channels)
    for size in sizes:
        if len(size) != len(own):
            raise UserError(f"a size of {len(size)} numbers for signals of {len(own)} axes", help="HEIGHTxWIDTH")
    data = found.mapped(split, ("latent", "index"))
    latents, index = (a[rows[0] : rows[1]] for a in data.values())
    if not len(latents):
        raise UserError(f"there are {found.rows(split)} {split} latents, none from {rows[0]} to {rows[1]}")
    originals = _originals(found, field, split, rows, files, report)
    told: dict[str, Any] = {"split": split, "rows": [rows[0], rows[0] + len(latents)], "sizes": []}
    for size in [tuple(s) for s in sizes] or [own]:
        name = "x".join(map(str, size))
        told["sizes"].append(name)
        if npy:
            (out / name).mkdir(parents=True, exist_ok=True)
            np.save(out / name / f"{split}.npy", field.render(latents, size, tile))
            continue
        images = []
        for i, latent in enumerate(latents):
            image = draw(out / name / f"{split}-{index[i]:06}.png", field, latent, size, tile)
            if image is not None:
                images.append(image)
        if images:
            lines = in_rows(images, COLUMNS)
            if originals is not None:
                theirs = in_rows([enlarged(pixels(o), *size[:2]) for o in originals], COLUMNS)
                lines = [line for pair in zip(theirs, lines) for line in pair]
            write_png(out / f"{split}-{name}.png", sheet(lines))
    if originals is not None:
        made = field.render(latents, own, tile)
        each = [psnr(np.clip(a, 0, 1), b) for a, b in zip(made, originals)]
        told["psnr"] = {"mean": float(np.mean(each)), "each": dict(zip(map(int, index), each))}
    write_json(out / "psnr.json", told)
    return told


def draw(file: Path, field: Field, latent: np.ndarray, size: Sequence[int], tile: int = TILE) -> np.ndarray | None:
    """Writes what a latent shows as PNG and returns its pixels, uint8[height, width, channels]; those of an image too
    large for a sheet are written as their tiles are rendered, and not kept. Raises: UserError."""
    if size[0] * size[1] <= SHEET:
        image = pixels(field.render(latent[None], size, tile)[0])
        write_png(file, image)
        return image
    tiles = field.tiles(latent[None], size, tile)
    stream_png(file, (*size, field.channels), (pixels(values[0]) for _, _, values in tiles))
    return None


def _originals(
    found: Functaset,
    field: Field,
    split: str,
    rows: tuple[int, int],
    files: str | Path | None,
    report: Callable[[str], None],
) -> np.ndarray | None:
    """The signals behind some latents, in [0, 1]; None where they can't be found."""
    source = Path(files or found.told["source"])
    if not source.exists():
        report(f"the signals were in {source}, which is gone: no PSNR (--files says where they are now)")
        return None
    data = signals_of(found.folder / FIELD, field, source)
    if data.describe()["fingerprint"] != found.told["signals"]["fingerprint"]:
        report(f"{source} holds other signals than were encoded: no PSNR")
        return None
    index = np.arange(*rows)[: max(min(rows[1], found.rows(split)) - rows[0], 0)]
    values = data.batch_of(data.part(split).take(index))[field.values]
    return values.reshape(len(index), *data.shape, field.channels)
