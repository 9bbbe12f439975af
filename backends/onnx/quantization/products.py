"""Products with weights: the one place where a matrix becomes bytes in the file and a kernel that reads them.

Every rule that multiplies activations by a weight, or looks rows of one up, comes here; so a new rule is quantisable
by calling `product`, and a new kind of weights serves all rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from .rounding import Rounded
from .scheme import Scheme

if TYPE_CHECKING:
    from ..emitter import Emitter


@dataclass(frozen=True)
class Product:
    """One use of a weight: its name, what it is multiplied by [.., rows], and its size [rows, columns].
    `looked_up`: rows of it are read as well."""

    name: str
    x: ir.Value
    weight: ir.Value
    rows: int
    columns: int
    transposed: bool


def product(
    m: Emitter, x: ir.Value, w: ir.Value, bias: ir.Value | None = None, *, transposed: bool = False
) -> ir.Value:
    """x [.., rows] times w [rows, columns], or the transpose of w [columns, rows], plus a bias [columns]."""
    if w.const_value is None or w.shape is None or len(w.shape) != 2:
        return m.biased(_plain(m, x, w, transposed), bias)
    first, second = w.shape.numpy()
    rows, columns = (second, first) if transposed else (first, second)
    m.products.append(Product(str(w.name), x, w, rows, columns, transposed))
    scheme = m.quantization.of(str(w.name), rows, columns)
    if scheme is None:
        return m.biased(_plain(m, x, w, transposed), bias)
    if scheme.block or transposed:
        scheme = scheme.table() if transposed else scheme
        codes, scales, _ = blocks(m, w, scheme, transposed)
        return m.microsoft(
            "MatMulNBits", x, codes, scales, None, None, bias,
            K=rows, N=columns, bits=scheme.bits, block_size=scheme.block, accuracy_level=4,
        )  # fmt: skip
    codes, scales = columns_of(m, w, scheme)
    return m.microsoft("DynamicQuantizeMatMul", x, codes, scales, None, bias)


def lookup(m: Emitter, table: ir.Value, index: ir.Value) -> ir.Value:
    """Rows of a table [rows, width]: index [..] -> [.., width]."""
    scheme = None
    if table.const_value is not None and table.shape is not None and len(table.shape) == 2:
        count, width = table.shape.numpy()
        scheme = m.quantization.of(str(table.name), width, count)
    if scheme is None:
        return m.op("Gather", table, index)
    scheme = scheme.table()
    _, scales, flat = blocks(m, table, scheme, True)
    found = m.microsoft(
        "GatherBlockQuantized", flat, index, scales,
        bits=scheme.bits, block_size=scheme.block, gather_axis=0, quantize_axis=1,
    )  # fmt: skip
    if width % scheme.block:
        found = m.op("Slice", found, m.integers(0), m.integers(width), m.integers(-1))
    return found


def _plain(m: Emitter, x: ir.Value, w: ir.Value, transposed: bool) -> ir.Value:
    # The product with a transposed table reads the table as it lies, so that one copy in the file serves the
    # embedding too; it is as fast as a plain MatMul (see README.md).
    return m.microsoft("FusedMatMul", x, w, transB=1) if transposed else m.op("MatMul", x, w)


def _rounded(m: Emitter, w: ir.Value, scheme: Scheme, transposed: bool) -> Rounded:
    """The rounded matrix [columns, rows]; kept until another is asked for, since codes and scales are written one
    after the other."""
    key = (str(w.name), scheme)
    if m.last_rounded is None or m.last_rounded[0] != key:
        tensor = w.const_value
        assert tensor is not None

        def matrix() -> np.ndarray:
            array = tensor.numpy()
            return array if transposed else np.ascontiguousarray(array.T)

        m.last_rounded = (key, m.quantization.round(str(w.name), matrix, scheme))
    found: Rounded = m.last_rounded[1]
    return found


def blocks(m: Emitter, w: ir.Value, scheme: Scheme, transposed: bool) -> tuple[ir.Value, ir.Value, ir.Value]:
    """(codes uint8[columns, blocks, bytes of a block], scales [columns, blocks], the codes' bytes as rows)."""
    assert w.shape is not None
    first, second = w.shape.numpy()
    rows, columns = (second, first) if transposed else (first, second)
    count, size = -(-rows // scheme.block), scheme.block * scheme.bits // 8

    def new() -> tuple[ir.Value, ir.Value, ir.Value]:
        def bytes_of() -> np.ndarray:
            return packed(_rounded(m, w, scheme, transposed), scheme)

        name, shape = f"{w.name}:{scheme.kind}", (columns, count, size)
        codes = m.weight(name, ir.DataType.UINT8, shape, bytes_of)
        scales = m.weight(
            f"{w.name}:{scheme.kind}:scale", ir.DataType.FLOAT, (columns, count),
            lambda: _rounded(m, w, scheme, transposed).scales,
        )  # fmt: skip
        flat = m.weight(f"{name}:rows", ir.DataType.UINT8, (columns, count * size), bytes_of)
        flat.meta[SAME_BYTES] = str(codes.name)
        return codes, scales, flat

    found: tuple[ir.Value, ir.Value, ir.Value] = m.shared(("blocks", str(w.name), scheme, transposed), new)
    return found


SAME_BYTES = "planform.same_bytes"
"""Under this key an initializer's `meta` names another one whose bytes in the file are its own too."""


def columns_of(m: Emitter, w: ir.Value, scheme: Scheme) -> tuple[ir.Value, ir.Value]:
    """(codes int8[rows, columns], scales [columns])."""
    assert w.shape is not None
    rows, columns = w.shape.numpy()

    def new() -> tuple[ir.Value, ir.Value]:
        codes = m.weight(
            f"{w.name}:{scheme.kind}", ir.DataType.INT8, (rows, columns), lambda: _rounded(m, w, scheme, False).codes.T
        )
        scales = m.weight(
            f"{w.name}:{scheme.kind}:scale", ir.DataType.FLOAT, (columns,),
            lambda: _rounded(m, w, scheme, False).scales[:, 0],
        )  # fmt: skip
        return codes, scales

    found: tuple[ir.Value, ir.Value] = m.shared(("columns", str(w.name), scheme), new)
    return found


def packed(r: Rounded, scheme: Scheme) -> np.ndarray:
    """MatMulNBits' bytes, uint8[out, blocks, block * bits / 8]: codes from 0 on, two 4 bit ones in a byte, the first
    in its low half; what fills up the last block is zero."""
    zero = 1 << (scheme.bits - 1)
    count = r.scales.shape[1]
    codes = np.full((len(r.codes), count * scheme.block), zero, np.uint8)
    codes[:, : r.codes.shape[1]] = (r.codes.astype(np.int16) + zero).astype(np.uint8)
    codes = codes.reshape(len(codes), count, scheme.block)
    return codes[..., 0::2] | (codes[..., 1::2] << 4) if scheme.bits == 4 else codes
