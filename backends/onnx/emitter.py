"""Makes the nodes and initializers of one ONNX model; what lowering rules write with.

Rules speak in `ir.Value`s. A weight is an initializer whose numbers are made only when the file is
written, so a rule that lays a weight out differently (`fold`) costs no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from planform.compiler.ops.contract import Op
from planform.compiler.size import Size, Symbol
from planform.compiler.types import TensorType

from .quantization.images import Convolution
from .quantization.products import Product
from .quantization.scheme import PLAIN, Quantization

MICROSOFT = "com.microsoft"
WINDOW_SLACK = 16
"""Rows of a window's cache beyond the window: old rows are moved away once in so many steps, not at each."""
CONSTANT, FOLD = "constant", "fold"
"""First parts of the keys under which initializers are shared."""

# The CPU runtime computes in float32 whatever float the graph asks for: it has hardly any 16-bit kernels.
ONNX_DTYPES: dict[str, ir.DataType] = {
    "f64": ir.DataType.FLOAT,
    "f32": ir.DataType.FLOAT,
    "f16": ir.DataType.FLOAT,
    "bf16": ir.DataType.FLOAT,
    "i64": ir.DataType.INT64,
    "i32": ir.DataType.INT32,
    "i8": ir.DataType.INT8,
    "u8": ir.DataType.UINT8,
    "bool": ir.DataType.BOOL,
}


class CannotLower(Exception):
    """A graph that this backend can't express; the message names the op and its place."""


@dataclass(frozen=True)
class Made:
    """Which op of the IR gave a value, from which values: for rules that take several ops as one."""

    op: Op
    inputs: tuple[ir.Value, ...]


@dataclass
class StateLayout:
    """How one streaming state lives in the file.

    layout: `plain` (as the IR has it), `linear` (a cache with position p in row p), `window` (a cache with the
    newest positions from row 0 on, see GroupQueryAttention's sliding_window_cache).
    dtype: of the entries in the file, where it isn't the state's own.
    """

    path: str
    past: ir.Value
    present: ir.Value | None = None
    layout: str = "plain"
    type: TensorType | None = None
    dtype: ir.DataType | None = None


def shape_of(type: TensorType) -> ir.Shape:
    """The type's dims; a symbolic one keeps its text (`time`, `batch*time`)."""
    return ir.Shape([d.size if isinstance(d.size, int) else str(d.size) for d in type.dims])


def is_weight(value: ir.Value) -> bool:
    """Whether the value's numbers are known when the file is written."""
    return value.const_value is not None


@dataclass
class Emitter:
    """`path` names what is emitted; `max_positions` is the longest stream, and how many positions tables of
    angles cover, or None for streams without end; `below` says of integer inputs what they must be below, as rows of a
    table; `products` are the uses of weight matrices, and `quantization` says how those are stored."""

    max_positions: int | None = 8192
    quantization: Quantization = PLAIN
    path: str = ""
    place: str | None = None
    nodes: list[ir.Node] = field(default_factory=list)
    made: dict[ir.Value, Made] = field(default_factory=dict)
    joint: dict[tuple[ir.Value, ...], ir.Value] = field(default_factory=dict)  # parts -> what they are split from
    states: list[StateLayout] = field(default_factory=list)
    below: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, tuple[ir.Value, int]] = field(default_factory=dict)  # symbol -> (input, axis)
    products: list[Product] = field(default_factory=list)
    convolutions: dict[ir.Value, Convolution] = field(default_factory=dict)  # result -> what it is of
    images: dict[ir.Value, None] = field(default_factory=dict)  # those that 8 bits may hold, in order
    last_rounded: tuple[Any, Any] | None = None  # (which, the rounded matrix)
    bias_of: dict[ir.Value, tuple[ir.Value, ir.Value]] = field(default_factory=dict)  # sum -> (product, its bias)
    _merged: dict[tuple[ir.Value, int], ir.Value] = field(default_factory=dict)
    _flat: dict[ir.Value, ir.Value] = field(default_factory=dict)
    _turned: dict[ir.Value, ir.Value] = field(default_factory=dict)  # an image -> the same, channels first
    _shared: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    _names: dict[str, int] = field(default_factory=dict)

    # Names

    def fresh(self, hint: str) -> str:
        """A name no other value of the model has."""
        n = self._names[hint] = self._names.get(hint, 0) + 1
        return hint if n == 1 else self.fresh(f"{hint}_{n}")

    @contextmanager
    def at(self, path: str, place: str | None = None) -> Iterator[None]:
        """Everything emitted inside belongs to this path of the model."""
        before = self.path, self.place
        self.path, self.place = path, place
        try:
            yield
        finally:
            self.path, self.place = before

    # Nodes

    def op(self, kind: str, *inputs: ir.Value | None, domain: str = "", outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node. Returns its value, or a tuple of them if it has several."""
        kept = list(inputs)
        while kept and kept[-1] is None:
            kept.pop()
        node = ir.node(kind, kept, attributes=attributes or None, domain=domain, num_outputs=outputs)
        hint = f"{self.path}/{kind}" if self.path else kind
        for out in node.outputs:
            out.name = self.fresh(hint)
        node.name = node.outputs[0].name
        if self.place:
            node.metadata_props["planform.place"] = self.place
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else tuple(node.outputs)

    def microsoft(self, kind: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> Any:
        """Adds one of the runtime's own fused ops."""
        return self.op(kind, *inputs, domain=MICROSOFT, outputs=outputs, **attributes)

    def either(
        self,
        condition: ir.Value,
        then: Callable[[], Sequence[ir.Value]],
        otherwise: Callable[[], Sequence[ir.Value]],
        *types: ir.DataType,
    ) -> Any:
        """Adds an If of two branches, each what its function emits, with results of these types. What a branch emits
        and shares is its own, its constants too: each value from outside that a branch reads costs time at every run.
        A state may be written in place in a branch as it may outside."""
        branches: dict[str, Any] = {}
        for name, make in (("then_branch", then), ("else_branch", otherwise)):
            nodes, shared = self.nodes, self._shared
            around = {k: v for k, v in shared.items() if k[0] != CONSTANT}
            self.nodes, self._shared = [], dict(around)
            try:
                results = [x if x.producer() in self.nodes else self.op("Identity", x) for x in make()]
                for x, type in zip(results, types, strict=True):
                    x.type = ir.TensorType(type)
                constants = [v for k, v in self._shared.items() if k[0] == CONSTANT]
                branches[name] = ir.Graph(
                    (), results, nodes=self.nodes, initializers=constants, name=self.fresh(f"{self.path}/{name}")
                )
                shared |= {k: v for k, v in self._shared.items() if k[0] == FOLD}
            finally:
                self.nodes, self._shared = nodes, shared
        return self.op("If", condition, outputs=len(types), **branches)

    def biased(self, x: ir.Value, bias: ir.Value | None) -> ir.Value:
        """x plus a bias, if there is one; `bias_of` tells those whose kernel adds it on its way."""
        if bias is None:
            return x
        y: ir.Value = self.op("Add", x, bias)
        self.bias_of[y] = x, bias
        return y

    def shared(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What `make` emits, once for all uses under the same key (masks, angles, lengths)."""
        if key not in self._shared:
            with self.at("shared"):
                self._shared[key] = make()
        return self._shared[key]

    # Initializers

    def weight(self, name: str, type: ir.DataType, shape: Sequence[int], make: Callable[[], np.ndarray]) -> ir.Value:
        """An initializer whose array is asked for only when it is written."""
        numpy_type = type.numpy()

        def tensor() -> ir.Tensor:
            array = np.ascontiguousarray(make(), numpy_type).reshape(tuple(shape))
            return ir.Tensor(array, name=unique)

        unique = self.fresh(name)
        lazy = ir.LazyTensor(tensor, type, ir.Shape(shape), name=unique)
        return ir.Value(name=unique, type=ir.TensorType(type), shape=ir.Shape(shape), const_value=lazy)

    def constant(self, value: Any, dtype: Any = np.float32) -> ir.Value:
        """An initializer with a known array; equal ones are one."""
        array = np.asarray(value, dtype)
        key = (CONSTANT, array.dtype.str, array.shape, array.tobytes())

        def make() -> ir.Value:
            return self.weight("constant", ir.DataType.from_numpy(array.dtype), array.shape, lambda: array)

        return self.shared(key, make)

    def integers(self, *values: int) -> ir.Value:
        """An int64 vector."""
        return self.constant(list(values), np.int64)

    def fold(self, suffix: str, shape: Sequence[int], make: Callable[..., np.ndarray], *weights: ir.Value) -> ir.Value:
        """An initializer computed from others when the file is written; `suffix` says what was done."""
        names = [str(w.name) for w in weights]

        def new() -> ir.Value:
            dtype = weights[0].dtype
            assert dtype is not None
            arrays = [w.const_value for w in weights]
            return self.weight(joined(names) + suffix, dtype, shape, lambda: make(*(a.numpy() for a in arrays)))  # type: ignore[union-attr]

        return self.shared((FOLD, suffix, *names), new)

    # Shapes

    def dim(self, size: Size) -> ir.Value:
        """A size as int64[1], read off the shapes of the model's inputs where it is symbolic."""
        if isinstance(size, int):
            return self.integers(size)

        def symbol(name: str) -> ir.Value:
            if name not in self.sizes:
                raise CannotLower(f"no input has a dim of size `{name}`")
            value, axis = self.sizes[name]
            return self.shared(("dim", name), lambda: self.op("Shape", value, start=axis, end=axis + 1))

        def compute() -> ir.Value:
            total: ir.Value | None = None
            for atoms, factor in size.terms:
                term = None if factor == 1 and atoms else self.integers(factor)
                for a in atoms:
                    one = (
                        symbol(a.name)
                        if isinstance(a, Symbol)
                        else self.op("Div", self.dim(a.numerator), self.dim(a.denominator))
                    )
                    term = one if term is None else self.op("Mul", term, one)
                total = term if total is None else self.op("Add", total, term)
            assert total is not None
            return total

        return self.shared(("size", str(size)), compute)

    def shape(self, sizes: Sequence[Size], keep: int = 0) -> ir.Value:
        """Sizes as int64[keep + n], zeros before them: dims that a Reshape leaves as they are."""
        if all(isinstance(s, int) for s in sizes):
            return self.integers(*([0] * keep), *(s for s in sizes if isinstance(s, int)))
        parts = [self.integers(*([0] * keep))] if keep else []
        return self.shared(
            ("shape", keep, *map(str, sizes)),
            lambda: self.op("Concat", *parts, *(self.dim(s) for s in sizes), axis=0),
        )

    def reshape(self, x: ir.Value, sizes: Sequence[Size], keep: int = 0) -> ir.Value:
        """x with its first `keep` dims unchanged and the rest laid out as `sizes`."""
        unknown = [s for s in sizes if not isinstance(s, int)]
        if len(unknown) <= 1:
            shape = self.integers(*([0] * keep), *(s if isinstance(s, int) else -1 for s in sizes))
        else:
            shape = self.shape(sizes, keep)
        return self.op("Reshape", x, shape)

    def merge(self, x: ir.Value, type: TensorType, count: int) -> ir.Value:
        """x [.., a, b] with its last `count` dims as one."""
        if count == 1:
            return x
        if (x, count) in self._merged:
            return self._merged[x, count]
        size: Size = 1
        for s in type.sizes[type.rank - count :]:
            size = size * s
        self._merged[x, count] = self.reshape(x, [size], type.rank - count)
        return self._merged[x, count]

    def split(self, x: ir.Value, type: TensorType, count: int) -> ir.Value:
        """The inverse: x's last dim as the last `count` dims of `type`. `merge` of the result costs nothing."""
        if count == 1:
            return x
        y = self.reshape(x, type.sizes[type.rank - count :], type.rank - count)
        self._merged[y, count] = self._flat[y] = x
        return y

    def unsplit(self, y: ir.Value) -> ir.Value:
        """The value that `split` made `y` from; `y` itself otherwise."""
        return self._flat.get(y, y)

    def transpose(self, x: ir.Value, order: Sequence[int]) -> ir.Value:
        return x if list(order) == sorted(order) else self.op("Transpose", x, perm=list(order))

    def turned(self, x: ir.Value) -> ir.Value:
        """An image [batch, height, width, channels] as [batch, channels, height, width]."""
        if x not in self._turned:
            self._turned[x] = self.op("Transpose", x, perm=[0, 3, 1, 2])
        return self._turned[x]

    def stands_turned(self, x: ir.Value) -> bool:
        """Whether `turned` costs nothing."""
        return x in self._turned

    def turned_back(self, y: ir.Value) -> ir.Value:
        """The inverse; nobody may need it: `turned` of the result costs nothing."""
        x: ir.Value = self.op("Transpose", y, perm=[0, 2, 3, 1])
        self._turned[x] = y
        return x

    def cast(self, x: ir.Value, source: str, target: str) -> ir.Value:
        """x in another dtype of the IR."""
        same = ONNX_DTYPES[source] == ONNX_DTYPES[target]
        return x if same else self.op("Cast", x, to=ONNX_DTYPES[target])


def joined(names: Sequence[str]) -> str:
    """One name for several: `a.query.w`, `a.key.w` -> `a.(query,key).w`."""
    if len(names) == 1:
        return names[0]
    parts = [n.split(".") for n in names]
    shortest = min(map(len, parts))
    head = 0
    while head < shortest - 1 and len({p[head] for p in parts}) == 1:
        head += 1
    tail = 0
    while tail < shortest - head - 1 and len({p[-1 - tail] for p in parts}) == 1:
        tail += 1
    middle = ",".join(".".join(p[head : len(p) - tail]) for p in parts)
    return ".".join([*parts[0][:head], f"({middle})", *parts[0][len(parts[0]) - tail :]])
