"""Memory moved into large pages: it is there as it was, and no more of it."""

from __future__ import annotations

import ctypes
import mmap
import threading
from pathlib import Path

import numpy as np
import pytest

from planform.backends.onnx import load, lower, pages, run
from planform.backends.onnx.pages import LARGE, large_pages
from planform.compiler.elaborate import elaborate
from planform.spec import load_text

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
pytestmark = pytest.mark.skipif(
    not SETTING.exists() or "[never]" in SETTING.read_text(), reason="this system has no large pages"
)
FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


WIDE = """
planform: 1
model: wide
graphs:
  f:
    inputs: {x: "float[batch, 2048]"}
    body: y = x >> linear(4096)
"""


def held(array: np.ndarray) -> dict[str, int]:
    """kB by kind of the mapping in which an array begins."""
    found: dict[str, int] = {}
    here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, *rest = line.split()
        if not key.endswith(":"):
            start, end = (int(x, 16) for x in key.split("-"))
            here = start <= array.ctypes.data < end
        elif here and rest[-1] == "kB":
            found[key[:-1]] = int(rest[0])
    return found


def resident(array: np.ndarray) -> int:
    """Small pages of it that are in memory."""
    first = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    there = np.zeros(-(-array.nbytes // mmap.PAGESIZE), np.uint8)
    ctypes.CDLL(None).mincore(ctypes.c_void_p(first), ctypes.c_size_t(array.nbytes), ctypes.c_void_p(there.ctypes.data))
    return int(there.sum())


def moved() -> None:
    """Waits for what goes on in the background."""
    for thread in threading.enumerate():
        if thread.name == pages.NAME:
            thread.join()


def supported() -> bool:
    """Whether this system moves memory into large pages at once."""
    array = taken(4)
    array[:] = 1
    before = held(array)["AnonHugePages"]
    first = -(-array.ctypes.data // LARGE) * LARGE
    ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(3 * LARGE), pages.COLLAPSE)
    return held(array)["AnonHugePages"] > before


def taken(pages: int) -> np.ndarray:
    """Fresh memory, bytes: so many large pages' worth, untouched."""
    return np.frombuffer(mmap.mmap(-1, pages * LARGE, flags=FLAGS), np.uint8)


def test_what_is_filled_inside_is_moved_and_stays_the_same() -> None:
    with large_pages():
        array = taken(16).view(np.uint32)
        array[:] = np.arange(array.size)
        before = held(array)["AnonHugePages"]
    moved()
    if not supported():
        pytest.skip("this system moves nothing into large pages at once")
    assert held(array)["AnonHugePages"] - before >= 14 * LARGE // 1024  # the ends needn't begin a large page
    assert np.array_equal(array, np.arange(array.size, dtype=np.uint32))


def test_what_was_there_before_stays() -> None:
    memory = taken(16)
    memory[:] = 1
    before = held(memory)["AnonHugePages"]
    with large_pages():
        pass
    moved()
    assert held(memory)["AnonHugePages"] == before


def test_memory_that_nobody_touched_is_not_taken() -> None:
    with large_pages():
        array = taken(64)
        array[:: 2 * LARGE] = 1  # one small page of each other large one
    moved()
    assert resident(array) == 32


def test_memory_that_is_given_back_meanwhile_is_left_alone() -> None:
    with large_pages():
        memory = mmap.mmap(-1, 256 * LARGE, flags=FLAGS)
        memory[:: mmap.PAGESIZE] = b"x" * (len(memory) // mmap.PAGESIZE)
    memory.close()
    again = taken(256)
    again[:LARGE] = 1
    moved()
    assert resident(again) <= LARGE // mmap.PAGESIZE + LARGE // mmap.PAGESIZE and again[:LARGE].all()


def test_the_weights_of_a_session_are_moved() -> None:
    def large() -> int:
        told = Path("/proc/self/smaps_rollup").read_text().split("AnonHugePages:")[1]
        return int(told.split()[0])

    spec = load_text(WIDE, "wide")
    model = lower(elaborate(spec, "f"), lambda name: np.ones((2048, 4096), np.float32))  # 32 MiB
    before = large()
    session = load(model)
    moved()
    if not supported():
        pytest.skip("this system moves nothing into large pages at once")
    assert large() - before >= 28 * 1024
    assert run(session, {"x": np.ones((1, 2048))})


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MAPS", Path("/none/maps"))
    with large_pages():
        array = taken(16)
        array[:] = 1
        before = held(array)
    assert not any(t.name == pages.NAME for t in threading.enumerate())
    assert held(array) == before
