"""Lowering rules, one file a family. `RULES` maps op names to them, `EXCLUDED` to why there is none."""

from . import attention, convolution, elementwise, linear, norm, recurrence, reduce, sequence, shape
from .registry import EXCLUDED, RULES, Rule, rule

__all__ = ["EXCLUDED", "RULES", "Rule", "rule"]
_families = (attention, convolution, elementwise, linear, norm, recurrence, reduce, sequence, shape)
