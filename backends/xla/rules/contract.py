"""What a lowering rule is: a function from a `Call` and JAX values to JAX values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from planform.compiler.analyses.sharding import Rules, Spec, spec_for
from planform.compiler.ops.contract import Op
from planform.compiler.types import TensorType

from ..policy import DTYPES, Policy

RULES: dict[str, Rule] = {}
EXCLUDED: dict[str, str] = {}
"""Ops that this backend runs neither by a rule nor by `decompose`, and why."""


def dtype_of(t: TensorType, policy: Policy) -> Any:
    """The JAX dtype that the policy gives a type; scalars (losses, weights) stay wide."""
    if t.dtype == "f32":
        return DTYPES[policy.compute if t.rank else policy.wide]
    return DTYPES[t.dtype]


@dataclass(frozen=True)
class Call:
    """One use of an op: the op with concrete sizes, the types around it, the policy, the mesh and its rules."""

    op: Any
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    policy: Policy
    shared: dict[Any, Any]
    """Values that several nodes of one program compute alike (rotary angles), by what they depend on."""
    mesh: Mesh | None = None
    rules: Rules = ()

    def split(self, t: TensorType) -> Spec:
        """The mesh axes that each dim of a value is split over, for rules that can't leave it to XLA."""
        return spec_for(t, self.rules, self.mesh.axis_names if self.mesh else ())

    def devices(self, t: TensorType, axis: int) -> int:
        """How many devices share a dim of a value."""
        return math.prod(self.mesh.shape[name] for name in self.split(t)[axis] or ()) if self.mesh else 1

    def dtype(self, t: TensorType) -> Any:
        return dtype_of(t, self.policy)


class Lazy:
    """A value that is no array yet. Rules that can do better than with an array take it as it is; the others
    get `array()`."""

    def array(self) -> jax.Array:
        raise NotImplementedError


@dataclass(frozen=True)
class Default(Lazy):
    """An input nobody gave: `iota` along the last dim, `zeros`, or `full` (`fill` everywhere)."""

    kind: Literal["iota", "zeros", "full"]
    type: TensorType
    fill: int = 0

    def array(self) -> jax.Array:
        shape, dtype = self.type.shape({}), DTYPES[self.type.dtype]
        if self.kind == "iota":
            return jnp.broadcast_to(jnp.arange(shape[-1], dtype=dtype), shape)
        return jnp.full(shape, self.fill, dtype)


@dataclass(frozen=True)
class Rule:
    """`floats` says how float inputs arrive: in the policy's compute dtype, widened to float32 or more (the
    results are cast back), or as they are. `lazy`: what kind of Lazy values the function takes itself."""

    function: Callable[..., Any]
    floats: Literal["compute", "wide", "own"]
    lazy: type[Lazy] | None

    def __call__(self, call: Call, *values: Any) -> tuple[Any, ...]:
        kept = self.lazy or ()
        values = tuple(v.array() if isinstance(v, Lazy) and not isinstance(v, kept) else v for v in values)
        if self.floats != "own":
            scalars = not any(t.rank for t in call.outputs)
            name = call.policy.wide if self.floats == "wide" or scalars else call.policy.compute
            values = tuple(_to(v, DTYPES[name]) for v in values)
        found = self.function(call, *values)
        outs = found if isinstance(found, tuple) else (found,)
        results = len(outs) - call.op.kept  # buffers stay as wide as they are stored
        dtypes = [call.dtype(t) if i < results else DTYPES[call.policy.stored] for i, t in enumerate(call.outputs)]
        return tuple(o if isinstance(o, Default) else o.astype(d) for o, d in zip(outs, dtypes, strict=True))


def _to(v: Any, dtype: Any) -> Any:
    return v.astype(dtype) if not isinstance(v, Lazy) and jnp.issubdtype(v.dtype, jnp.floating) else v


def rule(
    *ops: type[Op], floats: Literal["compute", "wide", "own"] = "compute", lazy: type[Lazy] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers the lowering of some ops. Raises: ValueError where one has a rule already."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for op in ops:
            if op.name in RULES:
                raise ValueError(f"op `{op.name}` already has a rule")
            RULES[op.name] = Rule(function, floats, lazy)
        return function

    return register
