"""Convolutions and pools of images. The runtime has them for [batch, channels, height, width]: an image is turned
once, and what follows it goes on with the turned one (`Emitter.turned`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from planform.compiler.ops.windows import Axis, Windowed
from planform.compiler.size import Size
from planform.compiler.types import TensorType

from ..emitter import is_weight
from ..quantization.images import Convolution, convolution, in_8_bits
from .registry import Emitter, Node, rule
from .sequence import indices
from .shape import product

FEW = 8
"""Channels below which onnxruntime's convolutions read an image as it is, in no blocks of channels: one that was given
with its channels last need not be turned for them."""


def edges(op: Windowed) -> list[int]:
    """The padding as ONNX has it: before of all axes, then after."""
    rows, columns = op.geometry()
    return [rows.before, columns.before, rows.after, columns.after]


def turned(m: Emitter, x: ir.Value, t: TensorType) -> ir.Value:
    """x [.., height, width, channels] as [batch, channels, height, width], all leading dims as one."""
    if t.rank != 4:
        x = m.reshape(x, [product(t.sizes[:-3]), *t.sizes[-3:]])
    return m.turned(x)


def back(m: Emitter, y: ir.Value, t: TensorType) -> ir.Value:
    """[batch, channels, height, width] as `t`."""
    y = m.turned_back(y)
    return y if t.rank == 4 else m.reshape(y, t.sizes)


@rule("conv2d")
def conv2d(m: Emitter, node: Node, x: ir.Value, weight: ir.Value, bias: ir.Value | None = None) -> ir.Value:
    op: Any = node.op
    axes, t = op.geometry(), node.inputs[0].type
    rows, columns, channels, made = (int(n) for n in node.inputs[1].type.sizes)  # type: ignore[arg-type]
    how = {
        "kernel_shape": [a.taps for a in axes], "strides": [a.stride for a in axes],
        "dilations": [a.dilation for a in axes], "pads": edges(op), "group": op.groups,
    }  # fmt: skip
    if is_weight(weight) and channels < FEW and axes[1].dilation == op.groups == 1 and not m.stands_turned(x):
        shape = [made, 1, rows, columns * channels]
        weight = m.fold(":kernel", shape, lambda a: a.transpose(3, 0, 1, 2).reshape(shape), weight)
        for name in ("kernel_shape", "strides", "pads"):
            how[name] = [n * (1, channels)[i % 2] for i, n in enumerate(how[name])]
        image = lines(m, x, t)
    else:
        order = (3, 2, 0, 1)
        if is_weight(weight):
            weight = m.fold(":kernel", [made, channels, rows, columns], lambda a: a.transpose(order), weight)
        else:
            weight = m.transpose(weight, order)
        image = turned(m, x, t)
    return back(m, convolution(m, Convolution(image, weight, bias, how)), node.output.type)


def lines(m: Emitter, x: ir.Value, t: TensorType) -> ir.Value:
    """x [.., height, width, channels] as [batch, 1, height, width * channels], where it lies: a kernel and its stride
    are then as many times wider."""
    if t.rank != 4:
        x = m.reshape(x, [product(t.sizes[:-3]), *t.sizes[-3:]])
    return m.op("Unsqueeze", m.op("Reshape", x, m.integers(0, 0, -1)), m.integers(1))


@rule("batch_norm")
def batch_norm(m: Emitter, node: Node, x: ir.Value, *given: ir.Value) -> ir.Value:
    """Into the weights of the convolution before it, where there is one; else a factor and a shift."""
    op: Any = node.op
    *affine, mean, variance = given
    width = [int(node.output.type.sizes[-1])]  # type: ignore[arg-type]

    def factor(*arrays: np.ndarray) -> np.ndarray:
        found: np.ndarray = 1 / np.sqrt(arrays[-1] + op.epsilon)
        return found * arrays[0] if affine else found

    def shift(*arrays: np.ndarray) -> np.ndarray:
        found: np.ndarray = -arrays[-2] * factor(*arrays)
        return found + arrays[1] if affine else found

    if not all(map(is_weight, given)):
        y = m.op("Div", m.op("Sub", x, mean), m.op("Sqrt", m.op("Add", variance, m.constant(op.epsilon))))
        return m.op("Add", m.op("Mul", y, affine[0]), affine[1]) if affine else y
    conv = m.convolutions.get(m.turned(x)) if m.stands_turned(x) else None
    if conv is None or not is_weight(conv.kernel) or (conv.bias is not None and not is_weight(conv.bias)):
        if m.stands_turned(x):
            both = affine or [m.constant(np.ones(width)), m.constant(np.zeros(width))]
            y = m.op("BatchNormalization", m.turned(x), *both, mean, variance, epsilon=op.epsilon)
            return m.turned_back(y)
        scaled = m.op("Mul", x, m.fold(":factor", width, factor, *given))
        return m.op("Add", scaled, m.fold(":shift", width, shift, *given))
    assert conv.kernel.shape is not None
    n, bias = len(given), [conv.bias] if conv.bias is not None else []
    kernel = m.fold(
        ":folded", conv.kernel.shape.numpy(), lambda *a: a[n] * factor(*a[:n]).reshape(-1, 1, 1, 1), *given, conv.kernel
    )
    start = m.fold(":bias", width, lambda *a: shift(*a[:n]) + (a[n] * factor(*a[:n]) if bias else 0), *given, *bias)
    return m.turned_back(convolution(m, replace(conv, kernel=kernel, bias=start)))


@rule("max_pool", "avg_pool")
def pool(m: Emitter, node: Node, x: ir.Value) -> ir.Value:
    op: Any = node.op
    axes = op.geometry()
    y = m.op(
        "MaxPool" if op.name == "max_pool" else "AveragePool", in_8_bits(m, turned(m, x, node.inputs[0].type)),
        kernel_shape=[a.taps for a in axes], strides=[a.stride for a in axes], pads=edges(op),
    )  # fmt: skip
    return back(m, y, node.output.type)


@rule("upsample")
def upsample(m: Emitter, node: Node, x: ir.Value) -> ir.Value:
    op: Any = node.op
    scales = m.constant([1, 1, op.factor, op.factor])
    x = turned(m, x, node.inputs[0].type)
    y = m.op(
        "Resize", x, None, scales, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )
    return back(m, y, node.output.type)


@rule("windows")
def windows(m: Emitter, node: Node, x: ir.Value) -> ir.Value:
    op: Any = node.op
    rank, sizes = node.inputs[0].type.rank, node.output.type.sizes
    before, after = np.zeros(rank, int), np.zeros(rank, int)
    before[-3:-1], after[-3:-1] = np.reshape(edges(op), (2, 2))
    if any(edges(op)):
        x = m.op("Pad", x, m.integers(*before, *after), m.constant(op.fill))
    for place, a in enumerate(op.geometry()):  # an axis of windows and one of taps in the place of one of cells
        axis = rank - 3 + place
        x = m.op("Gather", x, cells(m, a, sizes[axis]), axis=axis + place)
    order = list(range(rank + 2))
    order[rank - 2], order[rank - 1] = rank - 1, rank - 2
    return m.transpose(x, order)


@rule("overlap_add")
def overlap_add(m: Emitter, node: Node, x: ir.Value) -> ir.Value:
    """Products with the 0 and 1 of where each cell of a window lies."""
    op: Any = node.op
    lead, t = "abcdefg"[: node.inputs[0].type.rank - 5], node.inputs[0].type
    for axis, equation, size, image in zip(
        op.geometry(), (f"{lead}hwijz,yhi->{lead}ywjz", f"{lead}ywjz,xwj->{lead}yxz"),
        t.sizes[-5:-3], node.output.type.sizes[-3:-1],
    ):  # fmt: skip
        place = m.op("Sub", cells(m, axis, size), m.constant(axis.before, np.int64))
        all_cells = m.op("Unsqueeze", indices(m, image), m.integers(1, 2))
        x = m.op("Einsum", x, m.op("Cast", m.op("Equal", all_cells, place), to=ir.DataType.FLOAT), equation=equation)
    return x


def cells(m: Emitter, a: Axis, windows: Size) -> ir.Value:
    """Where the cells of each window stand along the padded axis: int64[windows, taps]."""
    first = m.op("Mul", indices(m, windows), m.integers(a.stride))
    return m.op("Add", m.op("Unsqueeze", first, m.integers(1)), m.constant([np.arange(a.taps) * a.dilation], np.int64))
