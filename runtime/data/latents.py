"""Latents of a functaset as rows: what classifiers and generators of signals learn on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import UserError
from ..functa.functaset import Functaset
from .arrays import ArrayData
from .source import Batch, Share


class LatentData(ArrayData):
    """Batches of normalised latents and perhaps labels; a DataSource. What the field's training held out is held out.
    Latents stay on disk until a batch has them.

    fields  names of the latents and, if there is a second, the labels
    sizes   of one latent as the model takes it, None where it takes any

    Raises: UserError where the latents have other sizes, or labels are asked for and there are none.
    """

    def __init__(
        self, found: Functaset, fields: tuple[str, ...], sizes: Sequence[int | None], share: Share, seed: int = 0
    ) -> None:
        if len(sizes) != len(found.shape) or any(n not in (None, m) for n, m in zip(sizes, found.shape)):
            theirs, ours = (" x ".join(map(str, s)) for s in (found.shape, sizes))
            raise UserError(
                f"the latents of {found.folder} are {theirs}, the model's {ours}",
                help="--set rows=.. and the like, as in the spec of the field" if len(sizes) == len(found.shape)
                else "vectors are for functa's models, grids for those of spatial functa",
            )  # fmt: skip
        if len(fields) > 1 and not found.told["classes"]:
            raise UserError(f"{found.folder} has no labels", help="encode signals that have some")
        names = ("latent", "labels")[: len(fields)]
        train, heldout = (found.mapped(split, names) for split in ("train", "heldout"))
        super().__init__(train, share, seed, heldout, source=str(found.folder))
        self.found, self._fields = found, dict(zip(names, fields))

    def batch_of(self, rows: Batch) -> Batch:
        rows = {**rows, "latent": self.found.normalised(rows["latent"])}
        return {self._fields[n]: array for n, array in rows.items()}

    def describe(self) -> dict[str, Any]:
        told = self.found.told
        return {**super().describe(), "kind": "functaset", "field": told["field"], "classes": told["classes"]}
