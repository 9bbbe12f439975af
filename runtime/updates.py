"""The updates of a training program as compiled functions: gradients, accumulation, the optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from planform.backends.xla import Policy, Stored, from_logical, initialise, lower, shardings, storage
from planform.backends.xla.lower import Lowered
from planform.backends.xla.policy import DTYPES
from planform.compiler.analyses.sharding import Rules, spec_for
from planform.compiler.elaborate import PRIORITY
from planform.compiler.ir import Graph, Input
from planform.compiler.parameters import layers
from planform.compiler.passes.loss_weight import WEIGHT
from planform.compiler.passes.pipeline import optimise
from planform.compiler.program import Program, Update

from .optimizer import Mask, Schedule, keep, mask, optimizer, schedule
from .regroup import view
from .targets import Slow

Arrays = dict[str, jax.Array]

DRAWN = ("uniform", "normal")
HELDOUT = 20113
"""Of the draws that are measured with; no run's own seed changes them."""


@dataclass(frozen=True)
class Layout:
    """Where everything is: the mesh, which dims go along which of its axes, and how graphs are run."""

    mesh: Mesh
    rules: Rules
    policy: Policy

    def inputs(self, graph: Graph) -> dict[str, NamedSharding]:
        """Where the data that a graph reads goes; what is drawn is none."""
        return {
            v.name: NamedSharding(self.mesh, PartitionSpec(*spec_for(v.type, self.rules, self.mesh.axis_names)))
            for v in graph.of_kind(Input)
            if v.default not in DRAWN
        }


class Updates:
    """A program on a mesh. Its parameters and buffers are stored as the first graph that has them stores them.

    storage    what a run changes, slow copies too, and keeps in checkpoints
    frozen     what other specs bring
    shardings  where each of both is
    """

    def __init__(self, program: Program, layout: Layout) -> None:
        self.program, self.layout = program, layout
        self.storage: dict[str, Stored] = {}
        self.frozen: dict[str, Stored] = {}
        self.shardings: dict[str, NamedSharding] = {}
        self._owner: dict[str, Graph] = {}
        covered: set[str] = set()
        updates = [
            replace(u, loss=optimise(u.loss, "xla", "training"), heldout=optimise(u.heldout, "xla", "training"))
            for u in program.updates
        ]
        for graph in (*(g for u in updates for g in (u.loss, u.heldout)), *(t.graph for t in program.targets)):
            places = shardings(graph, layout.policy, layout.mesh, layout.rules)
            new = {n: s for n, s in storage(graph, layout.policy).items() if s.logical[0] not in covered}
            self.storage.update({n: s for n, s in new.items() if not s.frozen})
            self.frozen.update({n: s for n, s in new.items() if s.frozen})
            self.shardings.update({n: places[n] for n in new})
            self._owner.update(dict.fromkeys(new, graph))
            covered.update(name for s in new.values() for name in s.logical)
        self.each = tuple(
            OneUpdate(u, place, program, layout, self.storage, self.frozen, self.shardings)
            for place, u in enumerate(updates)
        )
        self._slow = tuple(Slow(t, self.storage, self.shardings) for t in program.targets)
        stays = (
            {n: self.shardings[n] for n in self.storage},
            {u.name: u.state for u in self.each},
            NamedSharding(layout.mesh, PartitionSpec()),
        )
        self.together = jax.jit(self._together, donate_argnums=(0, 1), out_shardings=stays)

    def initialise(self, seed: int) -> Arrays:
        """First values of what a run changes."""
        made = self._made(self.storage, lambda graph, *rest: initialise(graph, self.layout.policy, seed, *rest))
        for slow in self._slow:
            made |= slow.begin(made)
        return made

    def follow(self, parameters: Arrays, step: int) -> Arrays:
        """The parameters after a step, with slow copies where they are now."""
        for slow in self._slow:
            if step % slow.every == 0:
                parameters = {**parameters, **slow.step(parameters)}
        return parameters

    def _together(
        self, parameters: Arrays, states: Mapping[str, Any], batch: Arrays, number: Any, frozen: Arrays
    ) -> tuple[Arrays, dict[str, Any], dict[str, Arrays]]:
        """One step of all updates from the same parameters. Buffers go from one to the next."""
        changed, after, metrics = dict[str, jax.Array](), {}, {}
        for u in self.each:
            before = {**parameters, **{n: a for n, a in changed.items() if self.storage[n].buffer}}
            made, after[u.name], metrics[u.name] = u.change(before, states[u.name], batch, number, frozen)
            changed |= made
        return {**parameters, **changed}, after, metrics

    def place(self, get: Callable[[str], np.ndarray]) -> Arrays:
        """What a run changes, from a function that gives each logical parameter."""
        return self._made(self.storage, lambda graph, *rest: from_logical(get, graph, self.layout.policy, *rest))

    def place_frozen(self, get: Callable[[str], np.ndarray]) -> Arrays:
        """What is frozen, from a function that gives each logical parameter."""
        return self._made(self.frozen, lambda graph, *rest: from_logical(get, graph, self.layout.policy, *rest))

    def _made(self, which: Mapping[str, Stored], make: Callable[..., Arrays]) -> Arrays:
        found: Arrays = {}
        for graph in dict.fromkeys(self._owner[n] for n in which):
            own = {n for n in which if self._owner[n] is graph}
            found |= make(graph, {n: self.shardings[n] for n in own}, own)
        return found


class OneUpdate:
    """One loss with its optimizer.

    initial(trained parameters) -> optimizer state, which lives where `state` says
    step(parameters, optimizer state, batch, number, frozen) -> (parameters, optimizer state, metrics); the first two
    are donated. number is that of the update, from 1. Buffers that the loss changes are among the parameters.
    measure(parameters, batch, frozen, number) -> ({"heldout_loss" and metrics: each * weight}, weight): for `means`;
    what is drawn at random is always the same for the held-out batch of that number.
    per_target says whether the held-out loss is the mean of one cross-entropy over classes: nats a token, in text.
    """

    def __init__(
        self,
        update: Update,
        place: int,
        program: Program,
        layout: Layout,
        own: Mapping[str, Stored],
        frozen: Mapping[str, Stored],
        places: Mapping[str, NamedSharding],
    ) -> None:
        self.name, self.graph = update.name, update.loss
        self.repeat = update.repeat
        self._accumulate = program.accumulate
        self._seed, self._draw = program.seed, (len(program.updates), place)
        self._sizes = {"batch": program.batch // program.accumulate}
        self._stored = {**own, **frozen}
        self._layout = layout
        self.per_target = WEIGHT in update.heldout.outputs
        self._run, self._run_heldout = self._runner(update.loss), self._runner(update.heldout)
        mine = storage(update.loss, layout.policy)
        used = {name for s in mine.values() for name in s.logical}
        here = {n: s for n, s in own.items() if used.intersection(s.logical)}
        moved = {name for b in update.loss.buffers if b.path in update.loss.outputs for name in layers(b.path)}
        self._buffers = {n: s for n, s in here.items() if moved.issuperset(s.logical)}
        self._made = {n: s for n, s in mine.items() if moved.issuperset(s.logical)}  # the same, as the loss groups them
        masks = {n: mask(update.params, s) for n, s in here.items() if not s.buffer}
        self.trained: dict[str, Mask] = {n: m for n, m in masks.items() if m is not False}
        updates = program.steps * update.repeat
        self.transformation = optimizer(update.optimizer, own, self.trained, updates)
        self._rate: Schedule = schedule(update.optimizer.arguments["learning_rate"], updates)
        self.inputs = layout.inputs(update.loss) | layout.inputs(update.heldout)
        self._dtype = DTYPES[layout.policy.wide]
        whole = NamedSharding(layout.mesh, PartitionSpec())
        first = {n: jax.ShapeDtypeStruct(own[n].type.shape({}), DTYPES[layout.policy.stored]) for n in self.trained}
        shapes = jax.eval_shape(self.transformation.init, first)
        # What the optimizer keeps for a parameter lives where the parameter does.
        self.state = jax.tree_util.tree_map_with_path(lambda path, _: places.get(_last(path), whole), shapes)
        self.initial = jax.jit(self.transformation.init, out_shardings=self.state)
        stays = ({n: places[n] for n in own}, self.state, whole)
        self.step = jax.jit(self._step, donate_argnums=(0, 1), out_shardings=stays)
        self.measure = jax.jit(self._measure, out_shardings=whole)

    def size(self, batch: Mapping[str, Any]) -> int:
        """How much a batch is: tokens, where the graph has a sequence axis, else examples; 0 where all is drawn."""
        for v in self.graph.of_kind(Input):
            if v.name in batch and self.graph.stream in v.type.names:
                return math.prod(batch[v.name].shape[: v.type.axis(self.graph.stream) + 1])
        return next((len(a) for a in batch.values()), 0)

    def _step(self, parameters: Arrays, *rest: Any) -> tuple[Arrays, Any, Arrays]:
        changed, state, metrics = self.change(parameters, *rest)
        return {**parameters, **changed}, state, metrics

    def change(
        self, parameters: Arrays, state: Any, batch: Arrays, number: Any, frozen: Arrays
    ) -> tuple[Arrays, Any, Arrays]:
        """`step`, but of the parameters only those that it changes."""
        trained, buffers = ({n: parameters[n] for n in which} for which in (self.trained, self._buffers))
        many, place = self._draw  # so that no two updates draw the same
        key = jax.random.fold_in(jax.random.key(self._seed), number * many + place)

        def loss(trained: Arrays, buffers: Arrays, part: Arrays, key: jax.Array) -> tuple[jax.Array, Any]:
            out = self._run({**frozen, **parameters, **trained, **buffers}, part, key)
            return out["loss"].astype(self._dtype), (self._weight(out), self._changed(out) | told(out))

        def told(out: Arrays) -> Arrays:
            return {PRIORITY: lax.stop_gradient(out[PRIORITY])} if PRIORITY in out else {}

        differentiated = jax.value_and_grad(loss, has_aux=True)
        (value, weight), buffers, gradients = _accumulated(
            differentiated, trained, buffers, batch, key, self._accumulate, self._dtype
        )
        more = {PRIORITY: buffers.pop(PRIORITY)} if PRIORITY in buffers else {}
        gradients = keep(gradients, self.trained)
        changes, state = self.transformation.update(gradients, state, trained)
        changed = {**optax.apply_updates(trained, changes), **buffers}  # type: ignore[dict-item]
        norm = optax.tree.norm(gradients)
        rate = self._rate(number)
        return changed, state, {"loss": value, "weight": weight, "gradient_norm": norm, "learning_rate": rate, **more}

    def _measure(self, parameters: Arrays, batch: Arrays, frozen: Arrays, number: Any = 0) -> tuple[Arrays, jax.Array]:
        key = jax.random.fold_in(jax.random.key(HELDOUT), number)

        def one(_: None, numbered: tuple[Arrays, jax.Array]) -> tuple[None, tuple[Arrays, jax.Array]]:
            part, k = numbered
            out = self._run_heldout({**frozen, **parameters}, part, k)
            weight = self._weight(out)
            measured = {("heldout_loss" if n == "loss" else n): v for n, v in out.items() if n != WEIGHT}
            return None, ({n: v.astype(self._dtype) * weight for n, v in measured.items()}, weight)

        _, (values, weights) = lax.scan(
            one, None, (_parts(batch, self._accumulate), jax.random.split(key, self._accumulate))
        )
        return {n: jnp.sum(v) for n, v in values.items()}, jnp.sum(weights)

    def _runner(self, graph: Graph) -> Lowered:
        """The graph as a function of parameters as they are stored."""
        layout, stored, own = self._layout, self._stored, storage(graph, self._layout.policy)
        mesh = layout.mesh if layout.mesh.size > 1 else None
        f = lower(graph, layout.policy, mesh, layout.rules, self._sizes)
        return lambda parameters, batch, key: f(view(parameters, stored, own), batch, None, key)

    def _weight(self, out: Arrays) -> jax.Array:
        """How many entries the loss is the mean of; where a graph doesn't say, every part of a batch counts alike."""
        return out.get(WEIGHT, jnp.ones(())).astype(self._dtype)

    def _changed(self, out: Arrays) -> Arrays:
        """The buffers' new values, as they are stored."""
        made = view({n: out[n].astype(self._dtype) for n in self._made}, self._made, self._buffers)
        return lax.stop_gradient(made)


def means(measured: Sequence[tuple[Mapping[str, Any], Any]]) -> dict[str, float]:
    """What `OneUpdate.measure` found on several batches as means over all of them."""
    weight = max(sum(float(w) for _, w in measured), 1e-9)
    names = measured[0][0] if measured else {}
    return {n: sum(float(values[n]) for values, _ in measured) / weight for n in names}


def _last(path: tuple[Any, ...]) -> Any:
    return getattr(path[-1], "key", None) if path else None


def _accumulated(
    function: Any, trained: Arrays, buffers: Arrays, batch: Arrays, key: jax.Array, parts: int, dtype: Any
) -> Any:
    """((loss, weight), buffers, gradients) of a batch taken in `parts`, one after another.

    Each part's loss is a mean over as many entries as its weight says; weighted by these, the parts' gradients give
    the whole batch's, however its targets are spread. Buffers are changed by each part in turn.
    """
    if parts == 1:
        (value, (weight, buffers)), gradients = function(trained, buffers, batch, key)
        return (value, weight), buffers, gradients

    def one(before: Any, part_key: Any) -> tuple[Any, None]:
        total, buffers = before
        (value, (weight, buffers)), gradients = function(trained, buffers, *part_key)
        more = ((value, jnp.ones_like(value)), gradients)
        return (jax.tree.map(lambda t, x: t + weight * x, total, more), buffers), None

    zero = jnp.zeros((), dtype)
    start = ((zero, zero), jax.tree.map(jnp.zeros_like, trained)), buffers
    each = (_parts(batch, parts), jax.random.split(key, parts))
    (((value, weight), gradients), buffers), _ = lax.scan(one, start, each)
    scale = 1 / jnp.where(weight > 0, weight, 1)
    return (value * scale, weight), buffers, jax.tree.map(lambda g: g * scale, gradients)


def _parts(batch: Arrays, parts: int) -> Arrays:
    """[batch, ..] as [parts, batch / parts, ..]. Part i has every parts-th example, so that the examples of one part
    are spread over the devices as those of the batch are, and none moves."""
    return {n: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0) for n, x in batch.items()}
