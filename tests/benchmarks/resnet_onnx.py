"""Measures ResNet-50 in onnxruntime, one image at a time: our file, the same in 8 bits, the file that torch's exporter
makes of transformers' ResNet, and torch itself, in turn in one process.

python -m tests.benchmarks.resnet_onnx --rounds 15
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from planform.backends.onnx import lower
from planform.backends.onnx.quantization import Quantization, Scheme
from planform.backends.onnx.quantization.calibration import image_ranges
from planform.backends.onnx.writing import save
from planform.compiler.analyses.cost import total_cost
from planform.compiler.elaborate import elaborate
from planform.compiler.passes.pipeline import optimise
from planform.compiler.size import evaluate
from planform.compiler.weights import weights_map
from planform.spec import load

from .peers.probes import products
from .ratios import interval

PAUSE = 0.1
"""Seconds before each turn: threads of the one before still look for work for a while."""


class Logits(torch.nn.Module):
    """transformers' network as a function of one array."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(pixel_values=image).logits
        return logits


def network() -> Any:
    """One whose norms and statistics count."""
    torch.manual_seed(0)
    model = ResNetForImageClassification(ResNetConfig(num_labels=1000)).eval()
    for name, p in [*model.named_parameters(), *model.named_buffers()]:
        if "normalization" in name and p.is_floating_point():
            low, high = (-0.2, 0.2) if name.endswith(("bias", "mean")) else (0.6, 1.4)
            p.data.uniform_(low, high)
    return model


def session(file: Path, threads: int, **sizes: int) -> ort.InferenceSession:
    """One for inputs of these sizes: a file that leaves them open is 5 to 9% slower until the runtime is told."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    for dim, size in sizes.items():
        options.add_free_dimension_override_by_name(dim, size)
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def measure(rounds: int = 15, side: int = 224, threads: int = 2) -> dict[str, Any]:
    """Speeds are ratios of times to that of our file in float32, medians over rounds with 95% bootstrap intervals.

    Beside them what the network's float32 operations would take at the rate of onnxruntime's products of large
    matrices, which no way of running them all can be much faster than.
    """
    torch.set_num_threads(threads)
    model, rng = network(), np.random.default_rng(0)
    state = {n: a.numpy() for n, a in model.state_dict().items()}
    tensors = weights_map(load("resnet50"), "huggingface").tensors
    parameters = dict(pair for t in tensors for pair in t.to_ours(state[t.name]))
    graph = optimise(elaborate(load("resnet50"), "classify"), "onnx", "training")
    image = rng.standard_normal((1, side, side, 3)).astype(np.float32)
    turned = image.transpose(0, 3, 1, 2).copy()
    with tempfile.TemporaryDirectory() as scratch:
        plain = lower(graph, parameters.__getitem__)
        seen = [{"image": rng.standard_normal((4, side, side, 3)).astype(np.float32)} for _ in range(4)]
        how = Quantization(Scheme("int8"), images=image_ranges(plain, seen))
        made: dict[str, Callable[[], np.ndarray]] = {}
        small = lower(graph, parameters.__getitem__, quantization=how)
        for name, lowered in (("ours", plain), ("ours in 8 bits", small)):
            save(lowered.model, Path(scratch) / f"{name}.onnx")
            run = session(Path(scratch) / f"{name}.onnx", threads, batch=1, height=side, width=side)
            made[name] = _runs(run, "image", image)
        file = Path(scratch) / "torch.onnx"
        torch.onnx.export(Logits(model).eval(), (torch.from_numpy(turned),), str(file), dynamo=False)
        theirs = session(file, threads)
        made["torch's exporter"] = _runs(theirs, theirs.get_inputs()[0].name, turned)
        made["torch"] = lambda: _eager(model, turned)
        answers = {n: run() for n, run in made.items()}
        times: dict[str, list[float]] = {n: [] for n in made}
        for _ in range(rounds):
            for name in rng.permutation(list(made)):
                time.sleep(PAUSE)
                run = made[name]
                run()  # its weights are in the caches, as they are where one network runs all the time
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    rate = products("onnxruntime", threads)()
    flops = evaluate(total_cost(graph).flops, {"batch": 1, "height": side, "width": side})
    limit = flops / rate / 1e6
    told: dict[str, Any] = {
        "side": side, "threads": threads, "rounds": rounds, "gflop": round(flops / 1e9, 2),
        "product_gflop_s": round(rate), "ms_at_that_rate": round(limit, 1),
        "torch_to_that": round(1e3 * statistics.median(times["torch"]) / limit, 2),
    }  # fmt: skip
    for name, taken in times.items():
        middle, low, high = interval([o / t for o, t in zip(times["ours"], taken)])
        off = np.sqrt(np.mean((answers[name] - answers["torch"]) ** 2) / np.mean(answers["torch"] ** 2))
        told[name] = {
            "ms": round(1e3 * statistics.median(taken), 1), "speed_to_ours": round(middle, 2),
            "interval": [round(low, 2), round(high, 2)], "rms_from_torch": float(f"{off:.1e}"),
        }  # fmt: skip
    return told


def _runs(session: ort.InferenceSession, name: str, image: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: session.run(None, {name: image})[0]


def _eager(model: Any, image: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = model(pixel_values=torch.from_numpy(image)).logits.numpy()
    return found


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=15)
    p.add_argument("--side", type=int, default=224)
    p.add_argument("--threads", type=int, default=2)
    print(json.dumps(measure(**vars(p.parse_args()))))


if __name__ == "__main__":
    main()
