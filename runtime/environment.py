"""The process environment that makes training on CPU fast, and how to get into it.

The allocator and XLA read their settings once, as the process starts or its first device is opened, so a
command that wants others starts itself again. No import here touches jax.
"""

from __future__ import annotations

import glob
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Mapping

GUARD = "PLANFORM_CPU_DEVICES"
"""Holds the number of devices that `reexec_with` set; in it, no command starts itself again for the same
number."""

COUNT = "--xla_force_host_platform_device_count"

FUSION = "--xla_cpu_experimental_ynn_fusion_type"
WITHOUT = "-LIBRARY_FUSION_TYPE_REDUCE,-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
"""What XLA hands to YNNPACK, less sums and single convolutions: jaxlib 0.10.2 and 0.11.0 die of sums that have many
dims (a convolution and the sum behind it, as in the gradient of `upsample`; jax-ml/jax issue 39257), and without the
convolutions a step of `resnet_small` takes 0.256 s in place of 0.281 (2 cores of an EPYC; `gemma2@small` 0.131 in place
of 0.130)."""

REGIONS = "--xla_cpu_copy_insertion_use_region_analysis"
"""Whether XLA looks closely for whether a weight may be overwritten where it is: without it each is copied at the start
of a step, and a step of 40M parameters takes 2.8% longer (2 cores of an EPYC)."""

TPUS = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
"""Where a TPU's chips are, of the older generations and of the newer."""

TUNABLES = (  # glibc's name, value, and the older variable by which a user may have set the same
    ("glibc.malloc.hugetlb", "1", None),
    ("glibc.malloc.mmap_max", "0", "MALLOC_MMAP_MAX_"),
    ("glibc.malloc.trim_threshold", "20000000000", "MALLOC_TRIM_THRESHOLD_"),
    ("glibc.malloc.arena_max", "1", "MALLOC_ARENA_MAX"),
    ("glibc.malloc.tcache_count", "0", None),
    ("glibc.malloc.mxfast", "0", None),
)

DISPATCH = "JAX_CPU_ENABLE_ASYNC_DISPATCH"
"""Whether a step runs in a thread of JAX's own, which may start the next one before the last one's memory is free."""


def cpu_environment(devices: int = 1, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What to add to the environment `given`, whole values by name; what the user set stays as it is.

    devices  CPU devices that JAX shall see (XLA_FLAGS)

    XLA gets `FUSION` and `REGIONS` as well.

    XLA allocates a step's buffers anew at each step. With GLIBC_TUNABLES, malloc asks for huge pages
    (hugetlb) and keeps freed memory instead of giving it back and having it zeroed again (mmap_max,
    trim_threshold): also what XLA's own threads allocate, which only malloc's main arena can keep
    (arena_max). What is kept must be found again: small blocks that lie in caches of their own aren't joined to
    the large ones around them, and the next step's buffer, which has the size of the last one's, is put
    elsewhere (tcache_count, mxfast); nor does it find what another thread hasn't freed yet (`DISPATCH`).
    Measured with `python -m tests.benchmarks.environment --rounds 5 --steps 3`: a training step of a transformer
    of 1.8M parameters on 2 cores of a Xeon, glibc 2.36, transparent huge pages on "madvise"; compared round by
    round, with 95% bootstrap intervals.

    | devices | setting     | page faults | in the kernel | largest memory | speed              |
    | ------- | ----------- | ----------- | ------------- | -------------- | ------------------ |
    | 1       | as is       | 118,903     | 180 ms        | 874 MB         | 1                  |
    | 1       | hugetlb     | 814         | 454 ms        | 860 MB         | 0.75 (0.69 - 0.85) |
    | 1       | and kept    | 748         | 203 ms        | 885 MB         | 0.94 (0.82 - 1.09) |
    | 1       | and one     | 0           | 6 ms          | 1,232 MB       | 1.16 (1.10 - 1.16) |
    | 1       | and bare    | 0           | 9 ms          | 1,645 MB       | 1.13 (1.07 - 1.15) |
    | 1       | all         | 0           | 3 ms          | 1,643 MB       | 1.15 (1.10 - 1.18) |
    | 2       | as is       | 94,511      | 148 ms        | 827 MB         | 1                  |
    | 2       | hugetlb     | 1,132       | 366 ms        | 825 MB         | 0.86 (0.69 - 0.88) |
    | 2       | and kept    | 1,123       | 87 ms         | 827 MB         | 1.09 (0.77 - 1.19) |
    | 2       | and one     | 0           | 2 ms          | 960 MB         | 1.21 (1.19 - 1.25) |
    | 2       | and bare    | 0           | 0 ms          | 1,141 MB       | 1.20 (1.14 - 1.22) |
    | 2       | all         | 0           | 0 ms          | 1,140 MB       | 1.23 (1.15 - 1.26) |

    ("kept": mmap_max, trim_threshold; "one": arena_max; "bare": tcache_count, mxfast; "all": no dispatch either;
    each with those before it.) Small allocations can still split the large freed blocks, hence now and then twice
    the memory of a step's buffers: of a 40M Gemma 2 a process took 1.7 or, less often, 2.4 GB, and 2.4 to 4.2 GB
    without the last two (`python -m tests.evidence gemma2 --only train_memory`). Who has less memory than time sets
    MALLOC_ARENA_MAX.
    """
    added: dict[str, str] = {}
    tunables, flags = given.get("GLIBC_TUNABLES", ""), given.get("XLA_FLAGS", "")
    if platform.libc_ver()[0] == "glibc":
        more = [f"{n}={value}" for n, value, older in TUNABLES if n not in tunables and older not in given]
        if more:
            added["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, *more)))
    wanted = {FUSION: WITHOUT, REGIONS: "true", **({COUNT: devices} if devices > 1 else {})}
    if more := [f"{name}={value}" for name, value in wanted.items() if name not in flags]:
        added["XLA_FLAGS"] = " ".join(filter(None, (flags, *more)))
    if DISPATCH not in given:
        added[DISPATCH] = "0"
    return added


def on_cpu(given: Mapping[str, str] = os.environ) -> bool:
    """Whether JAX will run on the CPU: it is told to, or no plugin for another device is installed.

    libtpu without a TPU is none: it compiles for TPUs elsewhere.
    """
    if platforms := given.get("JAX_PLATFORMS", ""):
        return platforms.split(",")[0].strip() == "cpu"
    plugins = importlib.util.find_spec("jax_plugins") or importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and not (importlib.util.find_spec("libtpu") and any(map(glob.glob, TPUS)))


def reexec_with(devices: int) -> None:
    """Starts the current command again in `cpu_environment(devices)`, or returns when it already is in it.

    For the first lines of a command line program, before anything is read, written or imported from jax; it
    doesn't return otherwise. Does nothing where JAX won't run on the CPU.
    """
    given = dict(os.environ)
    before = given.get(GUARD)
    if before == str(devices) or not on_cpu(given):
        return
    if before:  # a command started by one of ours: the number of devices was ours, not the user's
        flags = (flag for flag in given.get("XLA_FLAGS", "").split() if flag != f"{COUNT}={before}")
        given["XLA_FLAGS"] = " ".join(flags)
    wanted = {"JAX_PLATFORMS": "cpu"} | given | cpu_environment(devices, given)  # so that JAX looks for nothing else
    if wanted == dict(os.environ):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted | {GUARD: str(devices)})
