"""A graph as a JAX function: the interpreter that traces it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from planform.compiler.analyses.sharding import Rules, normalise, spec_for, within
from planform.compiler.ir import Buffer, Builder, Graph, Input, Node, State, Value, Weight, bind
from planform.compiler.ops.attention import Rope
from planform.compiler.ops.control import Repeat
from planform.compiler.parameters import layers as logical_names
from planform.compiler.size import Polynomial

from .grouping import Grouped, Plan, group, join, names, split
from .policy import DTYPES, Policy
from .rules import EXCLUDED, RULES, Call, Default, Lazy, dtype_of
from .rules.attention import angles

Lowered = Callable[..., dict[str, jax.Array]]


def lower(
    graph: Graph, policy: Policy, mesh: Mesh | None = None, rules: Any = (), sizes: Mapping[str, int] | None = None
) -> Lowered:
    """The graph as f(params, inputs, states=None, rng=None) -> outputs: pure, and for `jax.jit` and `jax.grad`.

    params   stored arrays by name, as `storage(graph, policy)` lists them; of a training graph the outputs hold the
             buffers' successors
    inputs   arrays by name; those with a default may be left out
    states   stored arrays by name, as `initial_states` makes them; the outputs hold their successors
    rng      a key, where the graph draws random numbers
    rules    (dim name, mesh axes) pairs: values with such dims are kept split over the mesh
    sizes    of symbols that no input tells, where all of them are drawn
    Raises: ValueError for arrays that don't fit, KeyError for one that is missing.
    """
    bound: dict[tuple[tuple[str, int], ...], Graph] = {}
    ordered = normalise(rules)

    def f(
        params: Mapping[str, Any],
        inputs: Mapping[str, Any],
        states: Mapping[str, Any] | None = None,
        rng: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        if policy.compute == "f64" and not jax.config.read("jax_enable_x64"):
            raise ValueError("compute f64 needs jax_enable_x64")
        env = tuple(sorted({**(sizes or {}), **_sizes(graph, inputs, states or {}, policy)}.items()))
        if env not in bound:
            bound[env] = bind(graph, dict(env))
        run = _Run(bound[env], Plan.of(bound[env], policy), policy, mesh, ordered, dict(env), {})
        return run.program(params, inputs, states or {}, rng)

    return f


def stored_names(graph: Graph, plan: Plan, v: Weight | State) -> Any:
    """The names that a stacked input is stored under, in the structure a program takes them."""
    return names(v.path, plan.groupings(graph, v, v.stacked))


@dataclass
class _Run:
    """One trace of one graph with concrete sizes. `shared` holds what several nodes compute alike; a
    repetition's body sees what is around it and keeps its own to itself."""

    graph: Graph
    plan: Plan
    policy: Policy
    mesh: Mesh | None
    rules: Rules
    env: Mapping[str, int]
    shared: dict[Any, Any]

    def program(
        self, params: Mapping[str, Any], inputs: Mapping[str, Any], states: Mapping[str, Any], rng: Any
    ) -> dict[str, jax.Array]:
        values: dict[Value, Any] = {}
        for v in self.graph.inputs:
            if isinstance(v, Weight):
                values[v] = jax.tree.map(params.__getitem__, stored_names(self.graph, self.plan, v))
            elif isinstance(v, State):
                values[v] = jax.tree.map(states.__getitem__, stored_names(self.graph, self.plan, v))
            elif isinstance(v, Input):
                values[v] = self.constrain(self.input(v, inputs, rng), v)
        self.nodes(self.graph.nodes, values)
        return self.outputs(values)

    def input(self, v: Input, inputs: Mapping[str, Any], rng: Any) -> Any:
        if v.name in inputs:
            array = jnp.asarray(inputs[v.name])
            return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(DTYPES[v.type.dtype])
        if v.default == "iota" or v.default == "zeros":
            return Default(v.default, v.type)  # type: ignore[arg-type]
        if v.default in ("uniform", "normal") and rng is not None:
            return self.draw(v, rng)
        if v.default == "full" and self.graph.stream:
            return Default("full", v.type, self.env[self.graph.stream])
        raise KeyError(f"input `{v.name}` is missing")

    def draw(self, v: Input, rng: jax.Array) -> jax.Array:
        """Random numbers keyed by path, a key for each layer of a stack: the same however layers are grouped
        and however many devices share them."""
        shape = v.type.shape(self.env)
        kind = jax.random.uniform if v.default == "uniform" else jax.random.normal
        keys = [jax.random.fold_in(rng, zlib.crc32(name.encode())) for name in logical_names(v.path)]
        if not v.stacked:
            return kind(keys[0], shape)
        return jax.vmap(lambda key: kind(key, shape[v.stacked :]))(jnp.stack(keys)).reshape(shape)

    def outputs(self, values: Mapping[Value, Any]) -> dict[str, jax.Array]:
        found: dict[str, jax.Array] = {}
        held: dict[str, Any] = {s.path: s for kind in (State, Buffer) for s in self.graph.of_kind(kind)}
        for name, v in self.graph.outputs.items():
            value = values[v]
            if name in held:
                groupings = self.plan.groupings(self.graph, held[name], held[name].stacked)
                stored = names(name, groupings)
                value = _regroup(value, groupings)
                found.update(zip(jax.tree.leaves(stored), jax.tree.leaves(value), strict=True))
            else:
                found[name] = _plain(value)
        return found

    # -- nodes ---------------------------------------------------------------------------------------------

    def nodes(self, nodes: Sequence[Node], values: dict[Value, Any]) -> None:
        for node in nodes:
            arguments = [values[v] for v in node.inputs]
            if isinstance(node.op, Repeat) and node.region:
                results = self.repeat(node, node.region, node.op, arguments)
            else:
                with jax.named_scope(node.origin.path or node.op.name):
                    results = self.node(node, [_unstacked(a) for a in arguments])
            values.update(zip(node.outputs, results, strict=True))

    def node(self, node: Node, arguments: Sequence[Any]) -> Sequence[Any]:
        op, types = node.op, tuple(v.type for v in node.inputs)
        found = RULES.get(op.name)
        if found is None:
            return self.decomposed(node, arguments)
        rules = within(self.rules, node.origin.path)
        call = Call(op, types, tuple(v.type for v in node.outputs), self.policy, self.shared, self.mesh, rules)
        results = found(call, *arguments)
        if op.family in ("elementwise", "activation"):
            return results  # they keep what their operands have
        return [self.constrain(r, v) for r, v in zip(results, node.outputs)]

    def decomposed(self, node: Node, arguments: Sequence[Any]) -> Sequence[Any]:
        b = Builder(node.op.name)
        inside = [b.add(Value(f"x{i}", v.type)) for i, v in enumerate(node.inputs)]
        made = node.op.decompose(b, *inside)
        if made is None:
            raise NotImplementedError(
                f"the XLA backend can't run `{node.op.name}`: "
                + EXCLUDED.get(node.op.name, "it has neither a rule here nor a `decompose` of its own")
            )
        values = dict(zip(inside, arguments, strict=True))
        self.nodes(b.nodes, values)
        return [values[v] for v in (made if isinstance(made, tuple) else (made,))]

    def constrain(self, x: Any, v: Value) -> Any:
        """x, what v stands for, kept split as the rules say."""
        if self.mesh is None or isinstance(x, Lazy):
            return x
        spec = spec_for(v.type, within(self.rules, v.origin.path), self.mesh.axis_names)
        if not any(spec):
            return x
        return lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*spec)))

    # -- repetition ----------------------------------------------------------------------------------------

    def repeat(self, node: Node, region: Graph, op: Repeat, arguments: Sequence[Any]) -> Sequence[Any]:
        unroll = self.plan.unroll[node]
        u, m, rest = split(op.count, unroll)
        carries = tuple(self.cast(a, v) for a, v in zip(arguments[: op.carries], region.inputs, strict=False))
        stacks = [group(_stack(s), op.count, unroll) for s in arguments[op.carries : op.carries + op.stacks]]
        invariants = arguments[op.carries + op.stacks :]
        self.hoist(region, op, invariants)
        outs = list(region.outputs.values())

        def layer(carries: tuple[Any, ...], slices: list[Any]) -> tuple[tuple[Any, ...], list[Any]]:
            inner = replace(self, shared=dict(self.shared))
            values = dict(zip(region.inputs, [*carries, *slices, *invariants], strict=True))
            inner.nodes(region.nodes, values)
            carries = tuple(
                self.constrain(self.cast(values[v], c), v) for v, c in zip(outs, region.inputs[: op.carries])
            )
            made = [values[v] for v in outs[op.carries :]]
            return carries, [_stack(v) for v in made]

        if self.policy.remat != "none" or op.remat:
            saved = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            layer = jax.checkpoint(layer, policy=saved if self.policy.remat == "dots" else None)  # type: ignore[assignment]

        def step(carries: Any, slices: Any) -> Any:
            made: list[Any] = [None] * u
            for j in reversed(range(u)) if op.reverse else range(u):
                carries, made[j] = layer(carries, [s[j] for s in slices])
            return carries, made

        def scan(carries: Any) -> Any:
            return (
                lax.scan(step, carries, [s.scanned for s in stacks], length=m, reverse=op.reverse)
                if u
                else (carries, [])
            )

        scanned: list[list[Any]] = []
        plain: list[Any] = [None] * rest
        if not op.reverse:
            carries, scanned = scan(carries)
        for i in reversed(range(rest)) if op.reverse else range(rest):
            carries, plain[i] = layer(carries, [s.plain[i] for s in stacks])
        if op.reverse:
            carries, scanned = scan(carries)
        stacked = [Grouped([s[i] for s in scanned], [p[i] for p in plain]) for i in range(len(outs) - op.carries)]
        return [*carries, *stacked]

    def cast(self, x: Any, carry: Value) -> Any:
        """x in the dtype of a carry; a buffer that is handed on stays as it is stored."""
        return _plain(x) if isinstance(carry, Weight) else _plain(x).astype(dtype_of(carry.type, self.policy))

    def hoist(self, region: Graph, op: Repeat, invariants: Sequence[Any]) -> None:
        """Computes what every run of the region would compute alike: the rotary angles of its positions."""
        outer = dict(zip(region.inputs[op.carries + op.stacks :], invariants))
        for n in region.nodes:
            if isinstance(n.op, Rope) and n.inputs[1] in outer:
                types = tuple(v.type for v in n.inputs)
                call = Call(n.op, types, types[:1], self.policy, self.shared)
                angles(call, outer[n.inputs[1]], n.op.half(types[0]), n.op.base)


def _unstacked(value: Any) -> Any:
    return join(value) if isinstance(value, Grouped) else value


def _stack(value: Any) -> Any:
    return value if isinstance(value, Grouped) else _plain(value)


def _plain(value: Any) -> Any:
    value = _unstacked(value)
    return value.array() if isinstance(value, Lazy) else value


def _regroup(value: Any, groupings: Sequence[tuple[int, int]]) -> Any:
    """A stack in the given grouping; entries of an inner repetition follow theirs."""
    if not groupings:
        return _plain(value)
    (count, unroll), *inner = groupings
    stack = group(value, count, unroll)
    if not inner:
        return Grouped([_plain(e) for e in stack.scanned], [_plain(e) for e in stack.plain])
    scanned = [e if isinstance(e, Grouped) else jax.vmap(lambda a: _regroup(a, inner))(e) for e in stack.scanned]
    return Grouped(scanned, [_regroup(e, inner) for e in stack.plain])


def _sizes(graph: Graph, inputs: Mapping[str, Any], states: Mapping[str, Any], policy: Policy) -> dict[str, int]:
    """What the graph's symbols stand for, read off the arrays. Raises: ValueError where they disagree."""
    env: dict[str, int] = {}
    plan = Plan.of(graph, policy) if states else None
    for v in graph.inputs:
        dims = v.type.dims
        if isinstance(v, Input) and v.name in inputs:
            shape = jnp.shape(inputs[v.name])
        elif isinstance(v, State) and plan:
            stored = jax.tree.leaves(stored_names(graph, plan, v))[0]
            if stored not in states:
                raise KeyError(f"state `{stored}` is missing")
            # Stacks lead, as many as the grouping left: the op's own dims are the last ones.
            dims = dims[v.stacked :]
            shape = jnp.shape(states[stored])
            shape = shape[len(shape) - len(dims) :]
        else:
            continue
        if len(shape) != len(dims):
            raise ValueError(f"`{v.name}` is {v.type}, the array given has shape {list(shape)}")
        for d, n in zip(dims, shape):
            if isinstance(d.size, Polynomial) and str(d.size).isidentifier():
                if env.setdefault(str(d.size), n) != n:
                    raise ValueError(f"`{d.size}` is {env[str(d.size)]} and {n} in the arrays given")
            elif isinstance(d.size, int) and d.size != n:
                raise ValueError(f"`{v.name}` is {v.type}, the array given has shape {list(shape)}")
    return env
