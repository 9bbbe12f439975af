"""Parameters, buffers and states as a program stores them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from planform.compiler.analyses.sharding import normalise, spec_for, within
from planform.compiler.ir import Buffer, Graph, Init, State, Weight, stacked_dim
from planform.compiler.parameters import gather, layers, sample, scatter, stack_shape
from planform.compiler.types import TensorType

from .grouping import Plan
from .lower import stored_names
from .policy import DTYPES, Policy


@dataclass(frozen=True)
class Stored:
    """One array of a program's parameters: its name with slices, its type with the stacks' leading dims,
    how it starts, and the logical parameters in it, in the order of its leading dims. A frozen one is another
    spec's; nothing updates it, so it is kept in the dtype that is computed in. A buffer is updated by no gradient."""

    name: str
    type: TensorType
    init: Init
    logical: tuple[str, ...]
    frozen: bool = False
    buffer: bool = False

    @property
    def stacked(self) -> int:
        return len(stack_shape(self.name))


def _stored(graph: Graph, plan: Plan, v: Weight | State) -> list[Stored]:
    own = v.type.dims[v.stacked :]
    found = []
    for name in jax.tree.leaves(stored_names(graph, plan, v)):
        lead = tuple(stacked_dim(n) for n in stack_shape(name))
        init, frozen = (v.init, v.frozen) if isinstance(v, Weight) else (Init("zeros"), False)
        t = v.type.with_dims((*lead, *own))
        found.append(Stored(name, t, init, tuple(layers(name)), frozen, isinstance(v, Buffer)))
    return found


def storage(graph: Graph, policy: Policy) -> dict[str, Stored]:
    """The arrays that `lower(graph, policy)` takes as parameters, by name."""
    plan = Plan.of(graph, policy)
    return {s.name: s for w in graph.weights for s in _stored(graph, plan, w)}


def shardings(graph: Graph, policy: Policy, mesh: Mesh, rules: Any) -> dict[str, NamedSharding]:
    """Where each stored parameter lives on a mesh, by the names of its dims."""
    ordered = normalise(rules)
    return {
        name: NamedSharding(mesh, PartitionSpec(*spec_for(s.type, within(ordered, name), mesh.axis_names)))
        for name, s in storage(graph, policy).items()
    }


def _dtype(s: Stored, policy: Policy) -> Any:
    if s.type.dtype != "f32":
        return DTYPES[s.type.dtype]
    return DTYPES[policy.compute if s.frozen else policy.stored]


def from_logical(
    get: Callable[[str], np.ndarray],
    graph: Graph,
    policy: Policy,
    shardings: Mapping[str, NamedSharding] | None = None,
    only: Collection[str] | None = None,
) -> dict[str, jax.Array]:
    """Stored parameters, those in `only` if it is given, from a function that gives each logical one.

    With shardings a device gets its own part only. Raises: ValueError where a shape doesn't fit.
    """
    found: dict[str, jax.Array] = {}
    for name, s in storage(graph, policy).items():
        if only is not None and name not in only:
            continue
        array = np.asarray(gather(name, get), _dtype(s, policy))
        if array.shape != s.type.shape({}):
            raise ValueError(f"`{name}` is {s.type}, the array given has shape {list(array.shape)}")
        if shardings is None:
            found[name] = jnp.array(array)
        else:
            found[name] = jax.make_array_from_callback(array.shape, shardings[name], array.__getitem__)
    return found


def initialise(
    graph: Graph,
    policy: Policy,
    seed: int,
    shardings: Mapping[str, NamedSharding] | None = None,
    only: Collection[str] | None = None,
) -> dict[str, jax.Array]:
    """First values, from the seed and each logical name alone: every grouping and mesh starts from the same."""
    inits: dict[str, tuple[Init, tuple[int, ...]]] = {}
    for s in storage(graph, policy).values():
        for name in s.logical:
            inits[name] = (s.init, s.type.shape({})[s.stacked :])
    return from_logical(lambda name: sample(*inits[name], seed, name), graph, policy, shardings, only)


def to_logical(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Stored arrays as logical ones, on the host."""
    return scatter({name: np.asarray(array) for name, array in params.items()})


def initial_states(graph: Graph, policy: Policy, env: Mapping[str, int]) -> dict[str, jax.Array]:
    """The states of a fresh stream, e.g. for env = {"batch": 2, "capacity": 64}; floats in the compute dtype."""
    plan = Plan.of(graph, policy)
    found: dict[str, jax.Array] = {}
    for v in graph.states:
        for s in _stored(graph, plan, v):
            dtype = DTYPES[policy.compute if s.type.dtype == "f32" else s.type.dtype]
            found[s.name] = jnp.zeros(s.type.shape(env), dtype)
    return found
