"""What the trainer asks of data, and the one pipeline behind every source.

A batch is a pure function of (seed, step). The pipeline is grain's MapDataset because it is exactly that:
random access, `dataset[step]`, through an index permutation that is computed an index at a time, so that a
global shuffle costs neither memory nor start-up time, resuming needs no state but the step, and no example is
read to be skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grain
import numpy as np

from ..errors import UserError

Batch = dict[str, np.ndarray]
"""Arrays by input name, each [batch, ...]; batch is this process's part of the global batch."""

ENOUGH = 1 << 60
"""Examples that no run gets through."""


class DataSource(Protocol):
    """Where a trainer's batches come from.

    Everything is deterministic: two sources made with equal arguments from equal data give equal batches, in
    any order of access. A global batch is the same examples in the same order whatever the number of
    processes; process p of n gets its p-th contiguous slice.
    """

    def batch(self, step: int) -> Batch:
        """The training batch of a step (from 0); a pure function, safe to call in any order."""

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """batch(start), batch(start + 1), ... without end, read ahead by threads."""

    def heldout(self, count: int) -> Iterator[Batch]:
        """At most `count` batches of data that training never sees; always the same ones for the same
        count."""

    def describe(self) -> dict[str, Any]:
        """JSON-able facts. `fingerprint` names the sequence of batches: a resumed run compares it with its
        own."""


class Following(DataSource, Protocol):
    """A source whose data depend on what is learned, as those of an agent do. The trainer tells it how the run goes;
    it must not keep the trainer waiting. Its batches are no function of (seed, step) alone."""

    def follow(self, step: int, parameters: Callable[[Sequence[str]], Mapping[str, np.ndarray]]) -> None:
        """After so many steps, before the batches of the next; `parameters` gives those named, as they are now."""

    def learned(self, priorities: np.ndarray) -> None:
        """How much there was to learn from each entry of the oldest global batch that this wasn't told of yet."""

    def measure(self, count: int) -> dict[str, float]:
        """What is told of an evaluation besides held-out losses, from `count` trials."""


@dataclass(frozen=True)
class Share:
    """Which part of a global batch this process reads.

    batch    examples in the global batch
    process  this process's index
    of       number of processes; must divide batch

    Raises UserError when it does not.
    """

    batch: int
    process: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if self.batch < 1 or self.of < 1 or not 0 <= self.process < self.of:
            raise UserError(f"a batch of {self.batch} can't be read by process {self.process} of {self.of}")
        if self.batch % self.of:
            raise UserError(
                f"a global batch of {self.batch} examples can't be split among {self.of} processes",
                help=f"make the batch a multiple of {self.of}",
            )

    @property
    def local(self) -> int:
        return self.batch // self.of


class Examples(Protocol):
    """A collection of examples, read by several threads at once."""

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> Batch:
        """The examples at these indices [n], in this order: arrays [n, ...]."""


class Batches:
    """Shuffled, endless batches of examples.

    seed  of the permutation, 0 to 2**32 - 1; every epoch has its own
    draw  in place of `examples.take` makes a batch of indices and the examples' places in the whole run, int64[n] both

    An epoch's last batch is completed with the first examples of the next one, so every example is seen once
    an epoch. Local batches are numbered step * of + process, which makes a process's part a contiguous slice.
    """

    def __init__(
        self,
        examples: Examples,
        share: Share,
        seed: int,
        draw: Callable[[np.ndarray, np.ndarray], Batch] | None = None,
    ) -> None:
        if not 0 <= seed < 1 << 32:
            raise UserError(f"the seed of the data must lie between 0 and 2**32 - 1, not {seed}")
        epochs = max(ENOUGH // len(examples), 1)  # repeat() itself counts to where batch() overflows
        endless = grain.MapDataset.range(len(examples)).seed(seed).shuffle().repeat(epochs)
        if draw is None:
            self._steps = self._mine(endless, share).map(examples.take)
        else:
            placed = endless.map_with_index(lambda place, index: (index, place))
            self._steps = self._mine(placed, share).map(lambda both: draw(*both))

    @staticmethod
    def _mine(endless: grain.MapDataset, share: Share) -> grain.MapDataset:
        return endless.batch(share.local).slice(slice(share.process, None, share.of))

    def __getitem__(self, step: int) -> Batch:
        if step < 0:
            raise IndexError(f"step {step}")
        batch: Batch = self._steps[step]
        return batch

    def iterate(self, start: int, threads: int = 1, ahead: int = 4) -> Iterator[Batch]:
        """Batches from step `start` on, in order; `ahead` of them are made by `threads` threads in
        advance."""
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        iterator = iter(self._steps.slice(slice(start, None)).to_iter_dataset(options))
        try:
            yield from iterator
        finally:
            iterator.close()


def sequential(examples: Examples, share: Share, count: int) -> Iterator[Batch]:
    """At most `count` batches in order, spread evenly over all examples, so that few of them still stand for
    all.

    Fewer when there are fewer examples; with less than one batch of examples, some are repeated.
    """
    total = len(examples)
    count = max(1, min(count, total // share.batch))
    for step in range(count):
        first = step * share.batch + share.process * share.local
        yield examples.take(np.arange(first, first + share.local) * total // (count * share.batch))
