"""The ops: one definition each, one file a family. `OPS` maps names to them."""

from . import attention, control, elementwise, linear, loss, norm, random, recurrence, reduce, sequence, shape
from .contract import OPS, At, Cost, Op, ParameterDecl, Reach, StateDecl, load_extensions, register

__all__ = ["OPS", "At", "Cost", "Op", "ParameterDecl", "Reach", "StateDecl", "load_extensions", "register"]
_families = (attention, control, elementwise, linear, loss, norm, random, recurrence, reduce, sequence, shape)
