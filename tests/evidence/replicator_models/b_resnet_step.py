"""ResNet-50's training step beside flax's and torch's."""

from __future__ import annotations

from typing import Any

from tests.benchmarks.ratios import judged
from tests.benchmarks.resnet import measure_as_trained
from tests.evidence import row

AIM = 2.0


@row(
    "replicator_models",
    "resnet_step",
    "ResNet-50's training step (loss and gradients, batch 8, 224 x 224, float32, CPU): at least 2 x the same network "
    "written in flax, with our flags and with XLA's own; transformers' in torch beside it; rounds in turn, all with "
    "the allocator of `planform train`",
    7,
)
def resnet_step() -> tuple[Any, bool | str]:
    found = measure_as_trained(rounds=7)
    low, high = found["flax"]["interval"]
    # Fifty norms spread roundings to float32: the peers' gradients differ too (`parity_resnet` has them in float64).
    same = all(found[n]["gradient_differs"] <= 2 * found["gradients_of_peers_differ"] for n in ("flax", "torch"))
    if not same or found["flax"]["with_its_own_flags"]["speed"] < AIM:
        return found, False
    return found, judged(low, high, AIM)
