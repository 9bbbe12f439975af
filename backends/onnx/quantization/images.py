"""Images in 8 bits: what convolutions read, adds and pools too, with one range for all of an image, and kernels with a
scale a channel. The runtime makes integer convolutions of the pairs of nodes that say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from .rounding import Rounded, rounded
from .scheme import KINDS, Range

if TYPE_CHECKING:
    from ..emitter import Emitter


@dataclass(frozen=True)
class Convolution:
    """What a convolution is of, nothing of it rounded: kernel [out, in, rows, columns], bias [out]."""

    image: ir.Value
    kernel: ir.Value
    bias: ir.Value | None
    attributes: Mapping[str, Any]


def convolution(m: Emitter, c: Convolution) -> ir.Value:
    """The node, of [batch, channels, height, width]; in 8 bits where the range of its image is known."""
    found = m.quantization.images.get(str(c.image.name))
    image = in_8_bits(m, c.image)
    if found is None or c.kernel.const_value is None or (c.bias is not None and c.bias.const_value is None):
        y: ir.Value = m.op("Conv", image, c.kernel, c.bias, **c.attributes)
    else:
        y = m.op("Conv", image, *_kernel(m, c, found), **c.attributes)
    m.convolutions[y] = c
    return y


def in_8_bits(m: Emitter, x: ir.Value) -> ir.Value:
    """An image that is read as 8 bits hold it, where its range is known; `Emitter.images` lists those that are asked
    for."""
    m.images[x] = None
    found = m.quantization.images.get(str(x.name))
    if found is None:
        return x

    def make() -> ir.Value:
        scale, zero = m.constant(found.scale), m.constant(found.zero, np.uint8)
        y: ir.Value = m.op("DequantizeLinear", m.op("QuantizeLinear", x, scale, zero), scale, zero)
        return y

    y: ir.Value = m.shared(("8 bits", str(x.name)), make)
    return y


def _kernel(m: Emitter, c: Convolution, image: Range) -> list[ir.Value]:
    """The kernel and the bias as the runtime wants them: whole numbers and the scale of each channel."""
    tensor, shape = c.kernel.const_value, c.kernel.shape
    assert tensor is not None and shape is not None
    name, out = str(c.kernel.name), shape.numpy()[0]

    @cache  # asked for by all that is written of it
    def of() -> Rounded:
        return rounded(tensor.numpy().reshape(out, -1), KINDS["int8"], tensor.numpy().size // out)

    def scales() -> np.ndarray:
        return of().scales[:, 0]

    codes = m.weight(f"{name}:int8", ir.DataType.INT8, shape.numpy(), lambda: of().codes)
    scale = m.weight(f"{name}:int8:scale", ir.DataType.FLOAT, (out,), scales)
    found = [m.op("DequantizeLinear", codes, scale, axis=0)]
    if c.bias is not None:
        bias = c.bias.const_value
        assert bias is not None
        steps = m.weight(f"{name}:int8:bias:scale", ir.DataType.FLOAT, (out,), lambda: scales() * image.scale)
        counts = m.weight(
            f"{c.bias.name}:int32", ir.DataType.INT32, (out,), lambda: np.rint(bias.numpy() / (scales() * image.scale))
        )
        found.append(m.op("DequantizeLinear", counts, steps, axis=0))
    return found
