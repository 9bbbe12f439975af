"""How much a mean loss counts for, so that microbatches add up to exactly the loss of their whole."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..ir import Graph, Node, Value
from ..ops.loss import CountTargets, CrossEntropy, LinearCrossEntropy
from .base import Names, Pass, Trace

WEIGHT = "weight"


@dataclass(frozen=True)
class LossWeight(Pass):
    """Adds the output `weight`, the number of entries with a target, where the output `loss` is the mean of
    one cross-entropy over them. Other losses have no such output: their microbatches count alike."""

    name: ClassVar[str] = "loss_weight"
    loss: str = "loss"

    def run(self, graph: Graph, trace: Trace) -> Graph:
        value = graph.outputs.get(self.loss)
        node = graph.producers().get(value) if value else None
        if node is None or WEIGHT in graph.outputs:
            return graph
        if not isinstance(node.op, (CrossEntropy, LinearCrossEntropy)):
            trace.missed(self.name, node, f"the loss is made by `{node.op.name}`, not by one cross-entropy")
            return graph
        targets = node.inputs[-1]
        if targets.type.is_float:
            trace.missed(self.name, node, "the targets are probabilities: every entry has one")
            return graph
        weight = Value(Names(graph).fresh(WEIGHT), CountTargets().infer(targets.type), node.origin)
        trace.fired(self.name, node)
        count = Node(CountTargets(), (targets,), (weight,), node.origin)
        return replace(graph, nodes=(*graph.nodes, count), outputs={**graph.outputs, WEIGHT: weight})
