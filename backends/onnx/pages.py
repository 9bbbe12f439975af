"""Large pages for weights. A decoded token reads them all once, and with pages of 4 KiB the processor spends a good
part of that time on finding out where each page lies."""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import numpy as np

MAPS = Path("/proc/self/maps")
SMALL, LARGE = mmap.PAGESIZE, 2 << 20
COLLAPSE = 25
"""MADV_COLLAPSE: moves what lies there into large pages at once (Linux 6.1); before that the advice is refused."""
NAME = "large pages"
LATER = 0.3
"""Seconds until it begins: whoever needs new memory meanwhile waits for it, and a first token does."""
FULL = 0.9
"""Of a large page, what must be in memory already: the rest of it comes in as well."""

Range = tuple[int, int]


@contextmanager
def large_pages() -> Iterator[None]:
    """Memory that is taken in here, and filled, is moved into large pages afterwards, where the system has them; else
    this does nothing. In a thread, `NAME`, so that a first token needn't wait: it takes 0.2 s a GB, ten times that
    where room must be made, and one large page at a time. Memory that is given back meanwhile is left alone."""
    before = _mapped()
    yield
    if found := list(_new(before, _mapped()) if before else ()):
        Thread(target=_move, args=(found,), name=NAME, daemon=True).start()


def _move(ranges: list[Range]) -> None:
    time.sleep(LATER)
    for start, end in ranges:
        _collapse(start, end)


def _mapped() -> list[Range]:
    """Where this process has memory of its own, in order; empty where the system doesn't tell."""
    try:
        lines = MAPS.read_text().splitlines()
    except OSError:  # no Linux, or it isn't shown
        return []
    found = []
    for line in lines:
        place, may, _, _, inode, *_ = line.split(None, 5)
        start, end = (int(x, 16) for x in place.split("-"))
        if may == "rw-p" and inode == "0" and end - start >= LARGE:
            found.append((start, end))
    return found


def _new(before: list[Range], after: list[Range]) -> Iterator[Range]:
    """What `after` holds and `before` doesn't."""
    for start, end in after:
        for first, last in before:
            if last <= start or end <= first:
                continue
            if start < first:
                yield start, first
            start = max(start, last)
        if start < end:
            yield start, end


def _collapse(start: int, end: int) -> None:
    """Moves each run of large pages that are in memory nearly whole."""
    libc = ctypes.CDLL(None)
    start, end = -(-start // LARGE) * LARGE, end // LARGE * LARGE
    if start >= end:
        return
    there = np.zeros((end - start) // SMALL, np.uint8)
    if libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(end - start), ctypes.c_void_p(there.ctypes.data)):
        return
    full = (there & 1).reshape(-1, LARGE // SMALL).mean(1) >= FULL
    edges = np.flatnonzero(np.diff(np.concatenate([[False], full, [False]]).astype(np.int8)))
    for first, last in edges.reshape(-1, 2):
        size = int(last - first) * LARGE
        libc.madvise(ctypes.c_void_p(start + int(first) * LARGE), ctypes.c_size_t(size), COLLAPSE)
