"""How a graph is run: precision, how much of a repetition is unrolled, what is recomputed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp

DTYPES: dict[str, Any] = {
    "f64": jnp.float64,
    "f32": jnp.float32,
    "f16": jnp.float16,
    "bf16": jnp.bfloat16,
    "i64": jnp.int64,
    "i32": jnp.int32,
    "i8": jnp.int8,
    "u8": jnp.uint8,
    "bool": jnp.bool_,
}


def wide(x: jax.Array) -> jnp.dtype:
    """The dtype that an array is summed up in: float32 or its own, if that is wider."""
    return jnp.promote_types(x.dtype, jnp.float32)


@dataclass(frozen=True)
class Policy:
    """The choices a graph leaves open. Hashable; the storage of parameters follows from (graph, policy).

    platform    cpu, gpu or tpu; where JAX runs unless given
    compute     what the IR's floats are computed in; norms, softmax and losses take float32 or wider
    unroll      layers of a repetition written out in one step of its scan; None lets `budget` decide
    budget      layer bodies that one program may hold, those in scans counted twice: compile time grows with
                it and with nothing else
    remat       what the backward pass recomputes: nothing, whole layers, or all but matrix products
    recurrence  the form of linear recurrences: sequential, associative, kernel (TPU); None for the platform's fastest
    loss_bytes  the most that one chunk of a loss's logits may take on a device; None lets the platform decide: what
                stays near a CPU's caches, or enough rows for an accelerator's products
    """

    platform: str = field(default_factory=jax.default_backend)
    unroll: int | None = None
    budget: int = 12
    remat: Literal["none", "layer", "dots"] = "none"
    compute: Literal["f32", "bf16", "f64"] = "f32"
    recurrence: Literal["sequential", "associative", "kernel"] | None = None
    loss_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.remat not in ("none", "layer", "dots"):
            raise ValueError(f"remat is none, layer or dots, not {self.remat!r}")
        if self.compute not in ("f32", "bf16", "f64"):
            raise ValueError(f"compute is f32, bf16 or f64, not {self.compute!r}")
        if self.recurrence not in (None, "sequential", "associative", "kernel"):
            raise ValueError(f"recurrence is sequential, associative or kernel, not {self.recurrence!r}")
        if self.unroll is not None and self.unroll < 1:
            raise ValueError(f"unroll is at least 1, not {self.unroll}")

    @property
    def chunk(self) -> int:
        """`loss_bytes`, decided."""
        return self.loss_bytes or (32 << 20 if self.platform == "cpu" else 256 << 20)

    @property
    def wide(self) -> str:
        """The dtype of norms, softmax, angles and losses."""
        return "f64" if self.compute == "f64" else "f32"

    @property
    def stored(self) -> str:
        """The dtype that float parameters are kept in."""
        return self.wide
