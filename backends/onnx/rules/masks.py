"""Which keys a query sees, by their positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from planform.compiler.ops.attention import HIDDEN
from planform.compiler.size import Size

from ..emitter import Emitter
from .sequence import indices


def row(m: Emitter, size: Size) -> ir.Value:
    """Positions 0, 1, 2 .. as one row, int64[1, size]."""
    return m.op("Unsqueeze", indices(m, size), m.integers(0))


def seen(m: Emitter, op: Any, query: ir.Value, key: ir.Value) -> ir.Value | None:
    """bool[batch, queries, keys] by positions [batch, queries] and [batch, keys]; None: all."""
    if not (op.causal or op.window):
        return None
    ago = m.op("Sub", m.op("Unsqueeze", query, m.integers(2)), m.op("Unsqueeze", key, m.integers(1)))
    dtype = query.dtype.numpy() if query.dtype else np.int64
    parts = []
    if op.causal:
        parts.append(m.op("GreaterOrEqual", ago, m.constant(0, dtype)))
    if op.window:
        near = ago if op.causal else m.op("Abs", ago)
        parts.append(m.op("Less", near, m.constant(op.window, dtype)))
    return parts[0] if len(parts) == 1 else m.op("And", *parts)


def hide(m: Emitter, seen: ir.Value | None) -> ir.Value:
    """What is added to capped scores [batch, heads, queries, keys]. Finite, so that a padded row which sees
    no key stays finite: its values meet those of real rows in later products, if only times zero."""
    return m.op("Unsqueeze", m.op("Where", seen, m.constant(0.0), m.constant(HIDDEN)), m.integers(1))
