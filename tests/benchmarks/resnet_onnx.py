"""Measures ResNet-50 in onnxruntime, one image at a time: our file as `planform` loads it and as anyone else would, the
same in 8 bits, the file that torch's exporter makes of transformers' ResNet, and torch itself, in turn in one process.

python -m tests.benchmarks.resnet_onnx --rounds 15
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from planform.backends.onnx import lower
from planform.backends.onnx.quantization import Quantization, Scheme
from planform.backends.onnx.quantization.calibration import image_ranges
from planform.backends.onnx.session import load, options
from planform.backends.onnx.writing import save
from planform.compiler.analyses.cost import total_cost
from planform.compiler.elaborate import elaborate
from planform.compiler.passes.pipeline import optimise
from planform.compiler.size import evaluate
from planform.compiler.weights import weights_map
from planform.spec import load as read

from .peers.probes import products
from .ratios import interval

Run = Callable[[], np.ndarray]
"""One pass of the network: logits [1, label]."""

PAUSE = 0.1
"""Seconds before each turn: threads of the one before still look for work for a while."""
TURNS = 5
"""Of each session in a round; their median counts."""


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


def plain(file: Path, threads: int, sizes: Mapping[str, int]) -> ort.InferenceSession:
    """A session for inputs of these sizes, with onnxruntime's own settings."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    for dim, size in sizes.items():
        options.add_free_dimension_override_by_name(dim, size)
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def own(file: Path, threads: int, sizes: Mapping[str, int]) -> ort.InferenceSession:
    """One as `planform` opens it."""
    return load(file, options(threads, sizes=sizes))


def measure(rounds: int = 15, side: int = 224, threads: int = 2) -> dict[str, Any]:
    """Speeds are ratios of times to that of our file in float32, medians over rounds with 95% bootstrap intervals.

    Each round opens all files anew, since where a session's memory comes to lie makes it 1 to 2% faster or slower for
    as long as it lives, and times them in turn. Beside them what the network's float32 operations would take at the
    rate of onnxruntime's products of large matrices, which no way of running them all can be much faster than.
    """
    torch.set_num_threads(threads)
    model, rng = network(), np.random.default_rng(0)
    state = {n: a.numpy() for n, a in model.state_dict().items()}
    tensors = weights_map(read("resnet50"), "huggingface").tensors
    parameters = dict(pair for t in tensors for pair in t.to_ours(state[t.name]))
    graph = optimise(elaborate(read("resnet50"), "classify"), "onnx", "training")
    image = rng.standard_normal((1, side, side, 3)).astype(np.float32)
    turned = image.transpose(0, 3, 1, 2).copy()
    sizes = {"batch": 1, "height": side, "width": side}
    with tempfile.TemporaryDirectory() as scratch:
        files = {n: Path(scratch) / f"{n}.onnx" for n in ("ours", "small", "exported")}
        whole = lower(graph, parameters.__getitem__)
        seen = [{"image": rng.standard_normal((4, side, side, 3)).astype(np.float32)} for _ in range(4)]
        how = Quantization(Scheme("int8"), images=image_ranges(whole, seen))
        save(whole.model, files["ours"])
        save(lower(graph, parameters.__getitem__, quantization=how).model, files["small"])
        torch.onnx.export(Logits(model).eval(), (torch.from_numpy(turned),), str(files["exported"]), dynamo=False)
        opened: dict[str, Callable[[], Run]] = {
            "ours": lambda: _runs(own(files["ours"], threads, sizes), image),
            "ours, plain session": lambda: _runs(plain(files["ours"], threads, sizes), image),
            "ours in 8 bits": lambda: _runs(own(files["small"], threads, sizes), image),
            "torch's exporter": lambda: _runs(plain(files["exported"], threads, {}), turned),
            "torch": lambda: lambda: _eager(model, turned),
        }
        answers: dict[str, np.ndarray] = {}
        times: dict[str, list[float]] = {n: [] for n in opened}
        probe, rates = products("onnxruntime", threads), []
        for _ in range(rounds):
            rates.append(probe())
            runs = {name: open_it() for name, open_it in opened.items()}
            taken: dict[str, list[float]] = {n: [] for n in opened}
            for _ in range(TURNS):
                for name in rng.permutation(list(runs)):
                    time.sleep(PAUSE)
                    run = runs[name]
                    answers[name] = run()  # its weights are in the caches, as where one network runs all the time
                    start = time.perf_counter()
                    run()
                    taken[name].append(time.perf_counter() - start)
            for name, found in taken.items():
                times[name].append(statistics.median(found))
    flops = evaluate(total_cost(graph).flops, sizes)
    limits = [flops / rate / 1e6 for rate in rates]
    told: dict[str, Any] = {
        "side": side, "threads": threads, "rounds": rounds, "gflop": round(flops / 1e9, 2),
        "product_gflop_s": round(statistics.median(rates)), "ms_at_that_rate": round(statistics.median(limits), 1),
        "torch_to_that": round(statistics.median(1e3 * t / l for t, l in zip(times["torch"], limits)), 2),
        "share_of_that_rate": round(statistics.median(l / t / 1e3 for t, l in zip(times["ours"], limits)), 2),
    }  # fmt: skip
    for name, taken in times.items():
        middle, low, high = interval([o / t for o, t in zip(times["ours"], taken)])
        off = np.sqrt(np.mean((answers[name] - answers["torch"]) ** 2) / np.mean(answers["torch"] ** 2))
        told[name] = {
            "ms": round(1e3 * statistics.median(taken), 1), "speed_to_ours": round(middle, 2),
            "interval": [round(low, 2), round(high, 2)], "rms_from_torch": float(f"{off:.1e}"),
        }  # fmt: skip
    return told


def _runs(session: ort.InferenceSession, image: np.ndarray) -> Run:
    feed = {session.get_inputs()[0].name: image}
    return lambda: session.run(None, feed)[0]


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
