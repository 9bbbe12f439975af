"""The encoder as a file for onnxruntime, and pictures far larger than what was trained on."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import onnxruntime as ort

from planform.runtime.exporting import export_run
from planform.runtime.functa.encode import signals_of
from planform.runtime.functa.field import TILE, Field
from planform.runtime.functa.functaset import FIELD
from tests.evidence import row

from .images import COUNT, STEPS, fashion_mnist, latents, trained, workspace

SIDE = 1024
BOUND = 16
"""MB beyond what a picture of 128 x 128 takes, eight tiles: what XLA and malloc keep of tiles that are done. A tile's
arrays are a quarter of a megabyte each, and its pixels go to the file as they come."""


@row(
    "functa",
    "encoder_onnx",
    "latents of 256 held-out images by the exported encoder (three steps, its gradients in the file) in plain "
    "onnxruntime within 1e-4 of XLA's, relative to their largest; losses within 1e-4; functa and spatial functa",
    2,
)
def encoder_onnx() -> tuple[Any, bool]:
    figure: dict[str, Any] = {}
    for model in ("functa", "spatial_functa"):
        run = trained(model, fashion_mnist(), STEPS)
        field = Field.of_run(run)
        data = signals_of(run, field)
        batch = data.batch_of(data.part("heldout").take(np.arange(256)))
        want = field.fitter(data.coords)(batch)
        folder = workspace() / "onnx" / model
        export_run(run, folder, graph="fit")
        session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        found = dict(
            zip(("latent", "loss"), session.run(["latent", "loss"], {n: batch[n] for n in ("coords", "signal")}))
        )
        figure[model] = {
            n: float(f"{np.max(np.abs(a - want[n])) / np.max(np.abs(want[n])):.1e}") for n, a in found.items()
        }
    return figure, all(e <= 1e-4 for f in figure.values() for e in f.values())


# Without the signals, whose own megabytes would hide those of a picture, as would those of starting and compiling: the
# peak is set back before each picture, and the first one isn't counted. Not by `ru_maxrss`, which a process takes over
# from the one that starts it.
PROGRAM = """
import json, sys
from planform.runtime.functa.decode import decode
folder, out, *sizes = sys.argv[1:]
peaks = []
for size in sizes:
    side, tile = map(int, size.split("/"))
    there = f"{out}/{size.replace('/', '-')}"
    open("/proc/self/clear_refs", "w").write("5")
    decode(folder, there, rows=(0, 1), sizes=[(side, side)], tile=tile, files=f"{there}/none")
    told = dict(line.split(":") for line in open("/proc/self/status"))
    peaks.append(int(told["VmHWM"].split()[0]) / 1024)
print(json.dumps(peaks))
"""


@row(
    "functa",
    "render",
    f"{SIDE} x {SIDE} from one latent as PNG, and {2 * SIDE} x {2 * SIDE}: the peak of memory at most {BOUND} MB above "
    f"that of 128 x 128; the same picture as in one piece, which takes more than ten times the bound",
    2,
)
def render() -> tuple[Any, bool]:
    found = latents("spatial_functa", fashion_mnist(), STEPS, COUNT)
    sizes = [f"{s}/{t}" for s, t in ((128, TILE), (128, TILE), (SIDE, TILE), (2 * SIDE, TILE), (SIDE, SIDE * SIDE))]
    out = workspace() / "rendered"
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(found.folder), str(out), *sizes],
                          check=True, capture_output=True, text=True)  # fmt: skip
    _, small, tiled, larger, whole = json.loads(done.stdout.splitlines()[-1])
    field, latent = Field.of_run(found.folder / FIELD), found.read("heldout")["latent"][:1]
    apart = np.max(np.abs(field.render(latent, (SIDE, SIDE)) - field.render(latent, (SIDE, SIDE), SIDE * SIDE)))
    figure = {
        "MB": {
            f"{SIDE} in tiles": round(tiled - small, 1),
            f"{2 * SIDE} in tiles": round(larger - small, 1),
            f"{SIDE} in one piece": round(whole - small),
        },
        "difference": float(f"{apart:.1e}"),
    }
    return figure, max(tiled, larger) - small <= BOUND and whole - small > 10 * BOUND and bool(apart <= 1e-5)
