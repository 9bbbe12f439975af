"""Quantised artefacts: what calibration gains, and that a budget is kept."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from planform.backends import onnx
from planform.backends.onnx.quantization import Quantization, Rounded, Scheme
from planform.compiler.elaborate import elaborate
from planform.runtime.errors import UserError
from planform.runtime.exporting import export_run, step_graph
from planform.runtime.quantize import Wish, of_run
from planform.runtime.quantize.measure import divergence, metrics_of, outputs
from planform.runtime.run import parameters_of_run, spec_of_run
from planform.runtime.train import train
from planform.spec import load
from tests.evidence import row

OUT = Path(__file__).parents[3] / "build" / "evidence" / "quantised"
STEPS = 400


def trained() -> Path:
    """A small Gemma 2 trained on the standard library's source; once for all rows."""
    train(load("gemma2@small"), OUT / "run", steps=STEPS, quiet=True)
    return OUT / "run"


def largest_fits(name: str, matrix: Callable[[], np.ndarray], scheme: Scheme) -> Rounded:
    """Each weight to the nearest of 16 levels, the largest of a block on -8: the format's usual rounding."""
    w = matrix()
    blocks = -(-w.shape[1] // scheme.block)
    cut = np.pad(w, ((0, 0), (0, blocks * scheme.block - w.shape[1]))).reshape(len(w), blocks, scheme.block)
    largest = np.take_along_axis(cut, np.abs(cut).argmax(-1)[..., None], -1)
    scale = np.where(largest == 0, 1, largest / -8)
    codes = np.clip(np.rint(cut / scale), -8, 7).reshape(len(w), -1)[:, : w.shape[1]]
    return Rounded(codes.astype(np.int8), scale[..., 0].astype(np.float32), scheme.block)


@row(
    "gemma2",
    "calibration",
    "of a model trained here, 4 bits in blocks of 128 with calibration are closer to float32 than blocks of 32 rounded "
    "to nearest, in a smaller file; the divergence in contract.json is found again by verify",
    5,
)
def calibration() -> tuple[Any, bool]:
    run = trained()
    graph = elaborate(spec_of_run(run))
    exported, _ = step_graph(graph)
    parameters = parameters_of_run(run)
    held_out = of_run(run, graph, None).held_out
    holds = True
    with tempfile.TemporaryDirectory() as scratch:

        def nearest(name: str, quantization: Quantization) -> Path:
            return onnx.export(
                exported, lambda n: np.asarray(parameters[n], np.float32), Path(scratch) / name,
                max_positions=512, quantization=quantization,
            )  # fmt: skip

        want = outputs(nearest("float32", onnx.PLAIN), True, held_out)
        rtn = nearest("nearest", Quantization(Scheme("int4", 32), round=largest_fits))
        error = divergence(metrics_of(exported), want, outputs(rtn, True, held_out))["logits"]
        size = (rtn / "model.onnx.data").stat().st_size
        figure: dict[str, Any] = {"KL in nats of blocks of 32, to nearest": float(f"{error:.3g}"), "bytes": size}
        for name, wish in {
            "int4, blocks of 128, calibrated": Wish("int4"),
            "int4, blocks of 32, calibrated": Wish("int4", 32),
            "int4, blocks of 128, and cache int8": Wish("int4", cache=True),
            "w8": Wish("w8"),
            "int8": Wish("int8"),
        }.items():
            folder = Path(scratch) / name.replace(" ", "")
            told = export_run(run, folder, positions=512, wish=wish)["quantization"]
            verdict = onnx.verify_contract(folder)
            contract = json.loads((folder / "contract.json").read_text())
            holds &= verdict.holds and verdict.metrics == {"logits": "kl"} and contract["quantization"] == told
            figure[f"KL of {name}"] = told["divergence"]["value"]
            if name == "int4, blocks of 128, calibrated":
                smaller = (folder / "model.onnx.data").stat().st_size
                figure["bytes of it"] = smaller
                holds &= told["divergence"]["value"] < error and smaller < size
    return figure, bool(holds)


@row(
    "gemma2",
    "quantisation_budget",
    "with --budget the matrices that cost most get more bits until the measured divergence is within it; where that "
    "leaves none quantised the export is refused and nothing is written",
    4,
)
def quantisation_budget() -> tuple[Any, bool]:
    run = trained()
    figure: dict[str, Any] = {}
    holds = True
    with tempfile.TemporaryDirectory() as scratch:
        free = export_run(run, Path(scratch) / "free", positions=512, wish=Wish("int4"))["quantization"]
        value = free["divergence"]["value"]
        figure["no budget"] = {"KL": value, **free["weights"]}
        for part in (2, 8):
            budget = float(f"{value / part:.2g}")
            folder = Path(scratch) / str(part)
            told = export_run(run, folder, positions=512, wish=Wish("int4", budget=budget))["quantization"]
            figure[f"budget {budget}"] = {"KL": told["divergence"]["value"], **told["weights"]}
            holds &= told["divergence"]["value"] <= budget and onnx.verify_contract(folder).holds
            holds &= any("int4" in kind for kind in told["weights"])
        try:
            export_run(run, Path(scratch) / "none", positions=512, wish=Wish("int4", budget=1e-12))
            holds = False
        except UserError as error:
            figure["budget 1e-12"] = f"refused: {error}"
        holds &= not (Path(scratch) / "none").exists()
    return figure, bool(holds)
