"""Replicas: the same global batch gives the same losses on every mesh, and state is split as it should be."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from planform.compiler.program import program
from planform.runtime.distributed import free_port
from planform.spec import load
from tests.evidence import row
from tests.runtime.training import corpus, finish, start

STEPS = 50
MESHES = ("data=1", "data=2", "data=4", "data=2,fsdp=2", "data=2,tensor=2")
TOLERANCE = {"f32": 1e-4, "f64": 1e-10}
JOB = {"spec": "gemma2@small", "overrides": ["train.data=text(tokens, length=64)"], "batch": 8}


def run(folder: Path, meshes: tuple[str, ...], **more: Any) -> dict[str, Any]:
    """What each mesh gave, over four devices of one process."""
    corpus(folder / "text")
    found: dict[str, Any] = finish(
        start({"folder": str(folder), "meshes": meshes, **JOB, **more}, 4, quick=False), 3600
    )
    return found


def two_processes(folder: Path, **more: Any) -> Any:
    """What two processes gave, each with one device."""
    port = free_port()
    job = {"folder": str(folder), "meshes": ["data=2"], **JOB, **more}
    children = [start(job, 1, f"{i}/2/127.0.0.1:{port}", quick=False) for i in range(2)]
    found = [finish(child, 3600)["data=2"] for child in children]
    assert found[0]["losses"] == found[1]["losses"], "the two processes saw different losses"
    return found[0]


@row(
    "main_job",
    "replicas",
    "the same losses for 50 steps on 1, 2 and 4 devices, 2 processes, and meshes with fsdp and tensor: within 1e-4 "
    "relative in float32 and 1e-10 in float64",
    12,
)
def replicas() -> tuple[Any, bool]:
    figure: dict[str, Any] = {}
    holds = True
    for compute, tolerance in TOLERANCE.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            found = run(folder, MESHES, steps=STEPS, compute=compute)
            found["2 processes, data=2"] = two_processes(folder, steps=STEPS, compute=compute)
        curves = {mesh: np.array(f["losses"]) for mesh, f in found.items()}
        truth = curves.pop("data=1")
        errors = {mesh: float((np.abs(c - truth) / np.abs(truth)).max()) for mesh, c in curves.items()}
        figure[compute] = {
            "first and last loss": [round(float(truth[0]), 4), round(float(truth[-1]), 4)],
            "largest relative difference": {mesh: float(f"{e:.1e}") for mesh, e in errors.items()},
        }
        holds &= len(truth) == STEPS and truth[-1] < truth[0] and all(e <= tolerance for e in errors.values())
    return figure, bool(holds)


@row(
    "main_job",
    "optimizer_sharding",
    "each device holds 1/N of the optimizer's state along fsdp and tensor (norms have no dim along tensor): bytes",
    4,
)
def optimizer_sharding() -> tuple[Any, bool]:
    meshes = {"data=1": (1, 1), "data=4": (1, 1), "fsdp=4": (4, 1), "data=2,fsdp=2": (2, 1), "data=2,tensor=2": (1, 2),
              "fsdp=2,tensor=2": (2, 2)}  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        found = run(Path(name), tuple(meshes), steps=1)
    counters, moments = 8, 2 * 4  # bytes: two int32, on every device; two float32 a weight
    loss = program(load(JOB["spec"])).updates[0].loss
    norms = moments * sum(p.type.elements for p in loss.parameters if p.type.rank - p.stacked == 1)
    matrices = moments * sum(p.type.elements for p in loss.parameters if p.type.rank - p.stacked > 1)
    figure, holds = {}, True
    for mesh, (fsdp, tensor) in meshes.items():
        (each,) = set(found[mesh]["optimizer_bytes"]["after"].values())
        want = matrices // (fsdp * tensor) + norms // fsdp + counters
        figure[mesh] = {"bytes per device": each, "of the whole": round(each / (matrices + norms), 4)}
        holds &= each == want
    return figure, bool(holds)
