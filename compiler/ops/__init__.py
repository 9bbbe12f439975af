"""The ops: one definition each, one file a family. `OPS` maps names to them."""

from . import (
    array,
    attention,
    batch_norm,
    broadcast,
    classes,
    control,
    convolution,
    einsum,
    elementwise,
    field,
    grid,
    linear,
    loss,
    norm,
    pooling,
    random,
    recurrence,
    reduce,
    sequence,
    shape,
    spectral_norm,
    take,
    windows,
)
from .contract import OPS, At, Cost, Op, ParameterDecl, Reach, StateDecl, load_extensions, register

__all__ = ["OPS", "At", "Cost", "Op", "ParameterDecl", "Reach", "StateDecl", "load_extensions", "register"]
_families = (
    array, attention, batch_norm, broadcast, classes, control, convolution, einsum, elementwise, field, grid, linear,
    loss, norm, pooling, random, recurrence, reduce, sequence, shape, spectral_norm, take, windows,
)  # fmt: skip
