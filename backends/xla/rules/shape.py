"""Changes of shape."""

from __future__ import annotations

import jax

from planform.compiler.ops import shape as ops

from .contract import Call, rule


@rule(ops.Rearrange)
def rearrange(call: Call, x: jax.Array) -> jax.Array:
    split, order, _ = call.op.plan(call.inputs[0])
    return x.reshape([d.size for d in split]).transpose(order).reshape(call.outputs[0].shape({}))
