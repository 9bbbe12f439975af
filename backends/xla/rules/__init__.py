"""Lowering rules, one file a family. An op without one runs through its `decompose`."""

from . import (
    attention,
    batch_norm,
    cache,
    convolution,
    elementwise,
    field,
    linear,
    loss,
    norm,
    recurrence,
    sequence,
    shape,
    soft_loss,
)
from .contract import EXCLUDED, RULES, Call, Default, Lazy, Rule, dtype_of, rule

__all__ = ["EXCLUDED", "RULES", "Call", "Default", "Lazy", "Rule", "dtype_of", "rule"]
_families = (
    attention, batch_norm, cache, convolution, elementwise, field, linear, loss, norm, recurrence, sequence, shape,
    soft_loss,
)  # fmt: skip
