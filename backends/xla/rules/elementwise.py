"""Elementwise ops and reductions: the op's own alignment of named dims, JAX's functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from planform.compiler.ops import elementwise as ops
from planform.compiler.ops import reduce
from planform.compiler.types import align

from ..policy import DTYPES
from .contract import Call, rule
from .gate import Gate, gated


def _rounded(x: jax.Array) -> jax.Array:
    """x in 8 significant bits; the gradient is that of x."""
    return x + lax.stop_gradient(lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7) - x)


FUNCTIONS: dict[type[ops.Elementwise], Callable[..., Any]] = {
    ops.Add: jnp.add,
    ops.Sub: jnp.subtract,
    ops.Div: jnp.divide,
    ops.Pow: jnp.power,
    ops.Maximum: jnp.maximum,
    ops.Minimum: jnp.minimum,
    ops.Neg: jnp.negative,
    ops.Abs: jnp.abs,
    ops.Exp: jnp.exp,
    ops.Log: jnp.log,
    ops.Sqrt: jnp.sqrt,
    ops.Rsqrt: lax.rsqrt,
    ops.Square: jnp.square,
    ops.Tanh: jnp.tanh,
    ops.Sin: jnp.sin,
    ops.Cos: jnp.cos,
    ops.Erf: lax.erf,
    ops.Sigmoid: jax.nn.sigmoid,
    ops.Floor: jnp.floor,
    ops.Bfloat16: _rounded,
    ops.Elu: jax.nn.elu,
    ops.Less: jnp.less,
    ops.LessEqual: jnp.less_equal,
    ops.Equal: jnp.equal,
    ops.And: jnp.logical_and,
    ops.Where: jnp.where,
    ops.Stop: lax.stop_gradient,
}


@rule(*FUNCTIONS)
def elementwise(call: Call, *values: Any) -> jax.Array:
    dims, floats = call.outputs[0].dims, type(call.op).floats
    aligned = [align(v, t, dims) for v, t in zip(values, call.inputs)]
    if floats:
        wide = DTYPES[call.policy.wide]
        aligned = [a if jnp.issubdtype(a.dtype, jnp.floating) else a.astype(wide) for a in aligned]
    return jnp.broadcast_to(FUNCTIONS[type(call.op)](*aligned), call.outputs[0].shape({}))


@rule(ops.Relu)
def relu(call: Call, x: jax.Array) -> jax.Array:
    """On CPUs as a choice: XLA writes the maximum of a residual sum for the convolution that reads it and yet, since it
    takes it for an op of one operand, makes it again from both summands wherever else it is read. With this a
    ResNet-50's step takes 5% less (2 cores of Zen 5)."""
    return jnp.where(x <= 0, 0, x) if call.policy.platform == "cpu" else jax.nn.relu(x)


@rule(ops.Mul, lazy=Gate)
def mul(call: Call, x: Any, y: Any) -> jax.Array:
    same = call.inputs[0].dims == call.inputs[1].dims
    if isinstance(y, Gate) and not isinstance(x, Gate):
        x, y = y, x
    if same and isinstance(x, Gate) and not isinstance(y, Gate):
        return gated(x.name, x.x, y)
    x, y = (v.array() if isinstance(v, Gate) else v for v in (x, y))
    dims = call.outputs[0].dims
    return align(x, call.inputs[0], dims) * align(y, call.inputs[1], dims)


@rule(ops.Cast, floats="own")
def cast(call: Call, x: jax.Array) -> jax.Array:
    return x  # the result takes the dtype of its type, as every result does


@rule(ops.Constant)
def constant(call: Call) -> jax.Array:
    return jnp.asarray(call.op.value, call.dtype(call.outputs[0]))


REDUCTIONS: dict[type[reduce.Reduce], Callable[..., jax.Array]] = {
    reduce.Sum: jnp.sum,
    reduce.Mean: jnp.mean,
    reduce.Max: jnp.max,
}


@rule(*REDUCTIONS, floats="wide")
def reduction(call: Call, x: jax.Array) -> jax.Array:
    return REDUCTIONS[type(call.op)](x, axis=call.op.axes(call.inputs[0]))
