"""Residual steps: stream + (product + bias), and the norm of that, as the one kernel that the runtime has for them.

A look over all nodes once they are there: what follows a sum no rule knows, and the norm may stand in the next layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from .emitter import Emitter


def fuse_residuals(m: Emitter, results: Sequence[ir.Value]) -> dict[ir.Value, ir.Value]:
    """Puts the kernel in the place of each norm of a sum of which one part is a product with a bias: one node for
    three, which counts where a token is decoded. A sum without a bias stays as it is: there nothing was gained, and for
    long prompts the kernel is slower than the nodes that it replaces.

    Changes the nodes of `m`; sums that nothing reads any more are left among them. `results` keep their nodes.
    Returns what has taken the place of which value.
    """
    place = {n: i for i, n in enumerate(m.nodes)}
    found: dict[ir.Value, ir.Value] = {}
    for i, norm in enumerate(m.nodes):
        parts = _parts(m, norm)
        if parts is None:
            continue
        old = (norm.outputs[0], norm.inputs[0])
        if any(v in results for v in old) or any(place.get(n, -1) < i for n in old[1].consumers()):  # type: ignore[union-attr]
            continue
        normed, mean, deviation, total = m.microsoft(
            "SkipSimplifiedLayerNormalization", *parts, outputs=4, epsilon=norm.attributes["epsilon"].as_float()
        )
        mean.name = deviation.name = ""  # for training, left out
        m.nodes[i] = m.nodes.pop()
        for before, after in zip(old, (normed, total)):
            assert before is not None
            ir.convenience.replace_all_uses_with(before, after)
            after.name, after.type, after.shape = before.name, before.type, before.shape
            before.name = m.fresh(f"{before.name}/sum")
            found[before] = after
    return found


def _parts(m: Emitter, norm: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value] | None:
    """(stream, product, gain, bias) of a norm that the kernel can take."""
    total = norm.inputs[0] if norm.op_type == "RMSNormalization" else None
    add = total.producer() if total is not None else None
    if total is None or add is None or add.op_type != "Add" or total.shape is None or len(total.shape) not in (2, 3):
        return None
    for stream, y in (add.inputs, add.inputs[::-1]):
        if y in m.bias_of and stream is not None and stream.shape == total.shape:
            product, bias = m.bias_of[y]
            return stream, product, norm.inputs[1], bias  # type: ignore[return-value]
    return None
