"""Normalisations and activations."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from planform.compiler.ops import norm as ops
from planform.compiler.ops.spectral_norm import TINY, SpectralNorm, SpectralNormTraining

from ..policy import wide
from .contract import Call, rule
from .gate import Gate
from .sums import Total, total_of


@rule(ops.RmsNorm, floats="own")
def rms_norm(call: Call, x: jax.Array, scale: jax.Array) -> jax.Array:
    return scaled_by_rms(x.astype(call.dtype(call.inputs[0])), scale, call.op.offset, call.op.eps, total_of(call))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def scaled_by_rms(x: jax.Array, scale: jax.Array, offset: float, eps: float, total: Total) -> jax.Array:
    """x / rms(x) * (offset + scale); its gradient keeps x and one number a row."""
    return _rms_forward(x, scale, offset, eps, total)[0]


def _rms_forward(x: jax.Array, scale: jax.Array, offset: float, eps: float, total: Total) -> tuple[jax.Array, Any]:
    u = x.astype(wide(x))
    r = lax.rsqrt(jnp.mean(u * u, -1, keepdims=True) + eps)
    return (u * r * (scale.astype(u.dtype) + offset)).astype(x.dtype), (x, r, scale)


def _rms_backward(offset: float, eps: float, total: Total, kept: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, r, scale = kept
    u, g = x.astype(r.dtype), dy.astype(r.dtype)
    dscale = total((g * u * r)[None]).reshape(scale.shape).astype(scale.dtype)
    g = g * (scale.astype(r.dtype) + offset)
    dx = r * g - u * (r * r * r * jnp.mean(g * u, -1, keepdims=True))
    return dx.astype(x.dtype), dscale


scaled_by_rms.defvjp(_rms_forward, _rms_backward)


@rule(ops.LayerNorm, floats="wide")
def layer_norm(call: Call, x: jax.Array, scale: jax.Array, *bias: jax.Array) -> jax.Array:
    centred = x - jnp.mean(x, -1, keepdims=True)
    y = centred * lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + call.op.eps) * scale
    return y + bias[0] if bias else y


@rule(SpectralNorm, SpectralNormTraining, floats="wide")
def spectral_norm(call: Call, x: jax.Array, u: jax.Array) -> Any:
    axis = call.op.axis % x.ndim
    matrix = lax.stop_gradient(jnp.moveaxis(x, axis, -1).reshape(-1, len(u)))
    v = _unit(matrix @ lax.stop_gradient(u))
    w = _unit(v @ matrix)
    v = jnp.moveaxis(v.reshape(*np.delete(x.shape, axis), 1), -1, axis)
    sigma = jnp.sum(x * v * w.reshape(-1, *(1 for _ in x.shape[axis + 1 :])))
    return (x / sigma, w) if call.op.kept else x / sigma


def _unit(x: jax.Array) -> jax.Array:
    return x / (jnp.linalg.norm(x) + TINY)


@rule(ops.Softmax, floats="wide")
def softmax(call: Call, x: jax.Array) -> jax.Array:
    return jax.nn.softmax(x, -1)


@rule(ops.Softcap)
def softcap(call: Call, x: jax.Array) -> jax.Array:
    return call.op.cap * jnp.tanh(x * (1 / call.op.cap))


@rule(ops.GeluTanh, ops.Gelu, ops.Silu)
def activation(call: Call, x: jax.Array) -> Gate:
    return Gate(call.op.name, x)
