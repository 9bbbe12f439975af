"""The runtime's op for rotary position embedding."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from ..emitter import Emitter


def rotated(m: Emitter, x: ir.Value, heads: int, width: int, half: int, *angles: ir.Value) -> ir.Value:
    """x [batch, time, heads * width] with the first 2 * half entries of each head turned. `angles`: cosines and sines
    [batch, time, half], or tables of them [positions, half] and then positions [batch, time]."""
    how: dict[str, Any] = {} if 2 * half == width else {"rotary_embedding_dim": 2 * half}
    y: ir.Value = m.op("RotaryEmbedding", x, *angles, num_heads=heads, interleaved=0, **how)
    return y
