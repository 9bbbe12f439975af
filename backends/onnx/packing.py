"""Query, key and value projections of one attention as one product.

Three products that read the same row have a third of the calls and one longer, better-fed weight when they
are one. Measured on decoding; the figure is in README.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from .emitter import Emitter, is_weight


def pack_projections(m: Emitter, nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """Joins the weights of three MatMuls that only one GroupQueryAttention reads.

    Not done where a weight serves elsewhere too: the file would hold it twice.
    """
    uses = Counter(v for n in nodes for v in n.inputs if v is not None)
    place = {n: i for i, n in enumerate(nodes)}
    packed: dict[ir.Node, ir.Node] = {}  # the first product of each three -> the one in its place
    for node in nodes:
        if node.op_type != "GroupQueryAttention" or node.inputs[1] is None:
            continue
        projections = [v for v in node.inputs[:3] if v is not None]
        products = [p for v in projections if (p := v.producer()) is not None and p.op_type == "MatMul"]
        read = [v for p in products for v in p.inputs if v is not None]
        rows, weights = set(read[::2]), read[1::2]
        once = all(uses[v] == 1 for v in (*projections, *weights))
        if len(products) != 3 or len(rows) != 1 or not once or not all(is_weight(w) for w in weights):
            continue
        shapes = [w.shape.numpy() for w in weights if w.shape is not None]
        weight = m.fold("", (shapes[0][0], sum(s[1] for s in shapes)), lambda *a: np.concatenate(a, 1), *weights)
        with m.at(str(node.name), node.metadata_props.get("planform.place")):
            joint = m.op("MatMul", rows.pop(), weight)
        packed[min(products, key=place.__getitem__)] = joint.producer()
        for i, v in enumerate((joint, None, None)):
            node.replace_input_with(i, v)
    out: list[ir.Node] = []
    for node in nodes:
        if node in packed:
            out.append(packed[node])
        out.append(node)
    return out
