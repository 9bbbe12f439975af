"""A chunk of several entries attends with capped scores, by single ops on what its cache holds and on itself.

GroupQueryAttention takes the tanh of one score after another, 9 ns each on one core of a Zen 5, which is most of its
time: 7.1 ms for 256 entries after 256 others (8 heads of 128), against 2.2 ms this way. For one entry the kernel stays:
it reads the cache where it lies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from planform.compiler.size import Size

from ..emitter import WINDOW_SLACK, Emitter
from .masks import hide, row, seen
from .registry import Node
from .rotary import rotated

CAPPED = 16
"""Entries of a chunk from which this is faster: it copies what the cache holds, whatever the chunk."""
NOWHERE = 2**40
"""A place that no query sees."""

Heads = tuple[ir.Value, ir.Value | None, ir.Value | None]
"""Queries, keys and values [batch, time, heads * head], or all three in the first."""

INT64, FLOAT = ir.DataType.INT64, ir.DataType.FLOAT


@dataclass
class Chunk:
    """Scores have a column for each of the first `width` rows of the cache, as many as any stream fills, and then one
    for each entry of the chunk.

    node: an `attend_cached` of queries [batch, time, heads, head]; length, count: int32[batch]; window: of a cache in
    the layout `window`, None for one in `linear`.
    """

    m: Emitter
    node: Node
    length: ir.Value
    count: ir.Value
    window: int | None

    def __post_init__(self) -> None:
        m, self.op = self.m, self.node.op
        qt, kt = (x.type for x in self.node.inputs[:2])
        self.time: Size = qt.sizes[1]
        self.heads, self.kv_heads, self.head = (int(n) for n in (qt.sizes[2], kt.sizes[2], qt.sizes[3]))  # type: ignore[arg-type]
        key = (self.length.name, self.count.name, str(self.time))
        self.long = m.shared(("long", *key), self._long)
        self.position, self.width, self.mask, self.rows = m.shared(
            ("capped", self.window, self.kv_heads, *key),
            lambda: m.either(self.long, self._plan, self._no_plan, INT64, INT64, FLOAT, INT64),
        )

    def _long(self) -> ir.Value:
        """bool: whether this is the way to go."""
        return self.m.op(
            "GreaterOrEqual", self.m.op("Squeeze", self.m.dim(self.time)), self.m.constant(CAPPED, np.int64)
        )

    def _no_plan(self) -> list[ir.Value]:
        none = self.m.integers()
        return [none, none, self.m.constant([]), none]

    def _plan(self) -> list[ir.Value]:
        """What all layers of this kind share: positions [batch, time]; `width` [1]; what is added to scores
        [batch, 1, 1, time, columns]; the row of its cache that a stream's first new entry takes [batch], or of a
        window's cache which column each row is afterwards [batch, kv_heads, rows, 1].
        """
        m, op = self.m, self.m.op
        length, count = (op("Unsqueeze", op("Cast", x, to=INT64), m.integers(1)) for x in (self.length, self.count))
        held, step = self._held(length), row(m, self.time)
        width = op("ReduceMax", held, keepdims=0)
        old = op("Range", m.constant(0, np.int64), width, m.constant(1, np.int64))
        width = op("Unsqueeze", width, m.integers(0))
        # By place in the stream, counted from the first row of its cache; a row that it doesn't fill has none.
        query = op("Add", held, step)
        filled = op("Where", op("Less", old, held), old, m.constant(NOWHERE, np.int64))
        mask = hide(m, seen(m, self.op, query, op("Concat", filled, query, axis=1)))
        mask = op("Unsqueeze", mask, m.integers(1))
        if self.window is None:
            rows = op("Squeeze", length, m.integers(1))
        else:
            # The newest entries come first in their order, those of the cache before those of the chunk.
            gone = op("Sub", op("Add", held, count), self._held(op("Add", length, count)))
            place = op("Add", gone, m.constant(np.arange(self.window + WINDOW_SLACK), np.int64))
            new = op("Add", place, op("Sub", width, held))
            end = op("Sub", op("Add", width, m.dim(self.time)), m.integers(1))
            rows = op("Min", op("Where", op("Less", place, held), place, new), end)
            rows = op("Expand", op("Unsqueeze", rows, m.integers(1, 3)), m.integers(1, self.kv_heads, 1, 1))
        return [op("Add", length, step), width, mask, rows]

    def _held(self, length: ir.Value) -> ir.Value:
        """How many rows of its cache a stream of this length fills: when a window's is full the kernel moves the newest
        rows to the front, and that at the same lengths whatever the chunks were."""
        if self.window is None:
            return length
        m, often = self.m, WINDOW_SLACK + 1
        beyond = m.op("Sub", length, m.constant(self.window + WINDOW_SLACK - often + 1, np.int64))
        times = m.op("Div", m.op("Max", beyond, m.constant(0, np.int64)), m.constant(often, np.int64))
        return m.op("Sub", length, m.op("Mul", times, m.constant(often, np.int64)))

    def attend(
        self, three: Heads, caches: tuple[ir.Value, ir.Value], angles: tuple[ir.Value, ir.Value] | None
    ) -> list[ir.Value]:
        """The result [batch, time, heads * head] and the two caches afterwards, written in place where they may be.

        angles: tables of cosines and sines by position, for queries and keys that aren't rotated yet.
        """
        m, op = self.m, self.m.op
        q, k, v = three
        if k is None or v is None:
            parts = (n * self.head for n in (self.heads, self.kv_heads, self.kv_heads))
            q, k, v = op("Split", q, m.integers(*parts), axis=2, outputs=3)
        if angles is not None:
            half = int(angles[0].shape[1])  # type: ignore[index, arg-type]
            q, k = (
                rotated(m, x, heads, self.head, half, *angles, self.position)
                for x, heads in ((q, self.heads), (k, self.kv_heads))
            )
        new = [
            op("Transpose", op("Reshape", x, m.integers(0, 0, self.kv_heads, self.head)), perm=[0, 2, 1, 3])
            for x in (k, v)
        ]
        old = (op("Slice", cache, m.integers(0), self.width, m.integers(2)) for cache in caches)
        keys, values = (op("Concat", *parts, axis=2) for parts in zip(old, new, strict=True))
        # [batch, kv_heads, heads that share them, time, head] on [batch, kv_heads, 1, columns, head].
        q = op("Reshape", q, m.integers(0, 0, self.kv_heads, self.heads // self.kv_heads, self.head))
        q = op("Transpose", q, perm=[0, 2, 3, 1, 4])
        shared_keys, shared_values = (op("Unsqueeze", x, m.integers(2)) for x in (keys, values))
        scores = m.microsoft("FusedMatMul", q, shared_keys, transB=1, alpha=self.op.scale / self.op.softcap)  # type: ignore[attr-defined]
        capped = op("Mul", op("Tanh", scores), m.constant(self.op.softcap))  # type: ignore[attr-defined]
        shares = op("Softmax", op("Add", capped, self.mask), axis=-1)
        y = op("Transpose", op("MatMul", shares, shared_values), perm=[0, 3, 1, 2, 4])
        y = op("Reshape", y, m.integers(0, 0, -1))
        if self.window is not None:
            return [y, *(op("GatherND", x, self.rows, batch_dims=2) for x in (keys, values))]
        return [y, *(op("TensorScatter", c, x, self.rows, axis=2) for c, x in zip(caches, new, strict=True))]
