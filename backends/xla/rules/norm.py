"""Normalisations and activations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from planform.compiler.ops import norm as ops

from .contract import Call, rule


@rule(ops.RmsNorm, floats="wide")
def rms_norm(call: Call, x: jax.Array, scale: jax.Array) -> jax.Array:
    r = lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + call.op.eps)
    return x * r * (scale + call.op.offset if call.op.offset else scale)


@rule(ops.LayerNorm, floats="wide")
def layer_norm(call: Call, x: jax.Array, scale: jax.Array, *bias: jax.Array) -> jax.Array:
    centred = x - jnp.mean(x, -1, keepdims=True)
    y = centred * lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + call.op.eps) * scale
    return y + bias[0] if bias else y


@rule(ops.Softmax, floats="wide")
def softmax(call: Call, x: jax.Array) -> jax.Array:
    return jax.nn.softmax(x, -1)


@rule(ops.Softcap)
def softcap(call: Call, x: jax.Array) -> jax.Array:
    return call.op.cap * jnp.tanh(x * (1 / call.op.cap))


@rule(ops.GeluTanh)
def gelu_tanh(call: Call, x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


@rule(ops.Gelu)
def gelu(call: Call, x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


@rule(ops.Silu)
def silu(call: Call, x: jax.Array) -> jax.Array:
    return jax.nn.silu(x)
