"""Slow copies of graphs, as functions of the parameters that they follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import jax
from jax.sharding import NamedSharding

from planform.backends.xla import Stored
from planform.compiler.targets import Target

from .regroup import Arrays, view


class Slow:
    """A slow copy: step(parameters) -> its arrays now, by name; begin likewise at the start of a run."""

    def __init__(self, target: Target, own: Mapping[str, Stored], places: Mapping[str, NamedSharding]) -> None:
        self.every, self._decay, self._stored = target.every, target.decay, own
        lead = f"{target.name}."
        self._names = {n: n.removeprefix(lead) for n, s in own.items() if s.logical[0].startswith(lead)}
        self._source = {
            self._names[n]: replace(own[n], logical=tuple(name.removeprefix(lead) for name in own[n].logical))
            for n in self._names
        }
        self._kept = {name for s in own.values() if s.buffer for name in s.logical}
        here = {n: places[n] for n in self._names}
        self.begin = jax.jit(lambda parameters: self._step(parameters, 0.0), out_shardings=here)
        self.step = jax.jit(lambda parameters: self._step(parameters, self._decay), out_shardings=here)

    def _step(self, parameters: Arrays, decay: float) -> Arrays:
        now = view(parameters, self._stored, self._source)

        def one(name: str, source: str) -> jax.Array:
            if not decay or self._kept.issuperset(self._source[source].logical):
                return now[source]
            before = parameters[name]
            return before + (1 - decay) * (now[source] - before)

        return {name: one(name, source) for name, source in self._names.items()}
