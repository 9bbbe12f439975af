"""Constant folding: what depends on no input is computed here, by the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ..ir import Graph, Node
from ..ops.contract import At
from ..ops.elementwise import Constant
from .base import Pass, Trace
from .rewriting import map_regions


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Ops on constants only, with scalar results, become constants. Results that are no finite number stay."""

    name: ClassVar[str] = "fold_constants"

    def run(self, graph: Graph, trace: Trace) -> Graph:
        graph = map_regions(graph, lambda region: self.run(region, trace))
        known: dict[object, Constant] = {}
        nodes: list[Node] = []
        changed = False
        for node in graph.nodes:
            if isinstance(node.op, Constant):
                known[node.output] = node.op
            elif node.inputs and all(v in known for v in node.inputs):
                folded = _fold(node, [known[v] for v in node.inputs])
                if folded is not None:
                    trace.fired(self.name, node)
                    node = replace(node, op=folded, inputs=())
                    known[node.output] = folded
                    changed = True
            nodes.append(node)
        return replace(graph, nodes=tuple(nodes)) if changed else graph


def _fold(node: Node, operands: list[Constant]) -> Constant | None:
    if node.region is not None or len(node.outputs) != 1 or node.output.type.rank:
        return None
    at = At(tuple(v.type for v in node.inputs), (node.output.type,))
    arrays = [o.reference(At((), (t,))) for o, t in zip(operands, at.inputs)]
    with np.errstate(all="ignore"):
        value = np.asarray(node.op.reference(at, *arrays)).item()
    if not np.isfinite(value):
        return None
    return Constant(float(value) if node.output.type.is_float else value, node.output.type.dtype)
