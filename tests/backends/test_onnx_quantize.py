"""Quantised weights and caches: every kind against NumPy, the file's bytes, the rounding itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from planform.backends.onnx import Quantization, Scheme, Session, export, load, lower, run, save
from planform.backends.onnx.emitter import Emitter
from planform.backends.onnx.lowering import IR_VERSION, OPSET
from planform.backends.onnx.quantization import Rounded, lookup, product, rounded
from planform.backends.onnx.quantization.calibration import cache_scales, second_moments
from planform.backends.onnx.quantization.rounding import INT4, INT7, INT8, best_scales
from planform.compiler.ir import Graph
from planform.compiler.passes.pipeline import optimise

from .onnx_models import gemma, step, tokens, weights

KINDS = [Scheme("int4", 32), Scheme("int4", 128), Scheme("w8", 32), Scheme("w8", 128), Scheme("int8")]


def run_one(quantization: Quantization, w: np.ndarray, x: np.ndarray, folder: Path, transposed: bool) -> np.ndarray:
    """x times one weight, through a file."""
    m = Emitter(quantization=quantization)
    given = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["m", x.shape[1]]))
    y = product(m, given, m.weight("w", ir.DataType.FLOAT, w.shape, lambda: w), transposed=transposed)
    return run_nodes(m, given, y, x, folder)


def run_nodes(m: Emitter, given: ir.Value, y: ir.Value, x: np.ndarray, folder: Path) -> np.ndarray:
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    used = {v for n in m.nodes for v in n.inputs if v is not None and v.const_value is not None}
    graph = ir.Graph(
        [given], [y], nodes=m.nodes, initializers=sorted(used, key=lambda v: str(v.name)),
        opset_imports={"": OPSET, "com.microsoft": 1}, name="one",
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    save(ir.Model(graph, ir_version=IR_VERSION), folder / "model.onnx")
    return run(load(folder), {given.name: x})["y"]


def activations(x: np.ndarray, block: int) -> np.ndarray:
    """x [entries, rows] as the kernels round it: by blocks symmetrically, or all together from 0 to 255."""
    if block:
        width = -(-x.shape[1] // block) * block
        cut = np.pad(x, ((0, 0), (0, width - x.shape[1]))).reshape(len(x), -1, block)
        scale = np.abs(cut).max(-1, keepdims=True) / 127
        return (np.rint(cut / np.where(scale == 0, 1, scale)) * scale).reshape(len(x), -1)[:, : x.shape[1]]
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = (high - low) / 255
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale


@pytest.mark.parametrize("scheme", KINDS, ids=str)
@pytest.mark.parametrize("rows", [256, 200])
@pytest.mark.parametrize("count", [1, 7])
def test_a_product_is_that_of_the_rounded_matrix(scheme: Scheme, rows: int, count: int, tmp_path: Path) -> None:
    """Also where the last block isn't full, and with weights as large as they get, which a processor that adds up
    16 bit pairs would saturate."""
    rng = np.random.default_rng(rows + count + 1)
    w = rng.standard_normal((rows, 48)).astype(np.float32)
    w[:, :4] = np.sign(w[:, :4])  # every one the largest of its column
    x = np.abs(rng.standard_normal((count, rows))).astype(np.float32)
    kept: list[Rounded] = []

    def keep(name: str, matrix: object, scheme: Scheme) -> Rounded:
        kept.append(rounded(matrix(), scheme.levels, scheme.block or rows))  # type: ignore[operator]
        return kept[-1]

    got = run_one(Quantization(scheme, round=keep), w, x, tmp_path, transposed=False)
    want = activations(x, scheme.block).astype(np.float64) @ kept[0].dequantised().T
    # Rounding all of x together may put an entry at a tie on the other side.
    assert np.abs(got - want).max() < (2e-5 if scheme.block else 1e-3) * np.abs(want).max()
    assert len(kept) == 1  # codes and scales come from one rounding
    assert np.abs(got - x @ w).max() < {4: 0.25, 8: 0.04}[scheme.bits] * np.abs(want).max()


@pytest.mark.parametrize("scheme", KINDS, ids=str)
@pytest.mark.parametrize("width", [256, 200])
def test_rows_of_a_table_are_looked_up(scheme: Scheme, width: int, tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((50, width)).astype(np.float32)
    m = Emitter(quantization=Quantization(scheme))
    given = ir.Value(name="x", type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape(["b", "t"]))
    found = lookup(m, m.weight("table", ir.DataType.FLOAT, table.shape, lambda: table), given)
    index = np.array([[3, 49], [0, 3]], np.int32)
    got = run_nodes(m, given, found, index, tmp_path)
    stored = scheme.table()
    want = rounded(table, stored.levels, stored.block).dequantised()[index]
    assert got.shape == (2, 2, width) and np.abs(got - want).max() < 1e-6


def tiny(folder: Path, scheme: Scheme | None, **more: object) -> tuple[Path, Graph, dict[str, np.ndarray]]:
    graph = gemma(d=64, ff=96)
    w = {k: v * np.float32(0.5) for k, v in weights(graph).items()}
    made = optimise(step(graph, last=True), "onnx", "step")
    quantization = Quantization(scheme, **more)  # type: ignore[arg-type]
    return export(made, w.__getitem__, folder, max_positions=64, quantization=quantization), made, w


@pytest.mark.parametrize("scheme", KINDS, ids=str)
def test_a_tied_table_is_in_the_file_once(scheme: Scheme, tmp_path: Path) -> None:
    folder, graph, _ = tiny(tmp_path / "m", scheme)
    proto = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    ranges = {}
    for t in proto.graph.initializer:
        told = {e.key: e.value for e in t.external_data}
        if told:
            ranges[t.name] = (int(told["offset"]), int(told["length"]))
    table = scheme.table()
    codes = ranges[f"table:{table.kind}"]
    assert ranges[f"table:{table.kind}:rows"] == codes and codes[1] == 50 * 64 * table.bits // 8 * (
        table.block // min(table.block, 64)
    )
    others = sorted(r for name, r in ranges.items() if not name.endswith(":rows"))
    assert all(a[0] + a[1] <= b[0] for a, b in zip(others, others[1:]))
    assert (folder / "model.onnx.data").stat().st_size == others[-1][0] + others[-1][1]
    assert not any(t.data_type == onnx.TensorProto.FLOAT and t.name == "table" for t in proto.graph.initializer)


def test_what_stays_float32(tmp_path: Path) -> None:
    """Norms and small matrices; and what is chosen to."""
    chosen: dict[str, Scheme | None] = {"table": None, "lm.layer[1].feed.glu.down.weight": Scheme("w8", 32)}
    folder, graph, _ = tiny(tmp_path / "m", Scheme("int4", 32), chosen=chosen)
    proto = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    floats = {t.name for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    names = {t.name for t in proto.graph.initializer}
    assert "table" in floats and any(".norm." in n or "pre" in n for n in floats)
    assert "lm.layer[1].feed.glu.down.weight:w8" in names and "lm.layer[0].feed.glu.down.weight:int4" in names
    none, _, _ = tiny(tmp_path / "none", Scheme("int4", 32), least=10**6)
    kinds = {n.op_type for n in onnx.load(str(none / "model.onnx"), load_external_data=False).graph.node}
    assert "MatMulNBits" not in kinds and "FusedMatMul" in kinds


@pytest.mark.parametrize("scheme", [Scheme("int4", 32), Scheme("int8")], ids=str)
def test_the_bytes_depend_on_the_arguments_alone(scheme: Scheme, tmp_path: Path) -> None:
    one, two = (tiny(tmp_path / n, scheme)[0] for n in "ab")
    for name in ("model.onnx", "model.onnx.data", "contract.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def stream(folder: Path, chunks: list[int], batch: int = 2) -> np.ndarray:
    session = Session(folder, threads=1, spin=False)
    session.reset(batch, sum(chunks))
    given, at, found = tokens(batch, sum(chunks)), 0, []
    for n in chunks:
        found.append(session.step({"tokens": given[:, at : at + n]})["logits"])
        at += n
    return np.concatenate(found, 1)


def test_a_quantised_cache_holds_across_the_window(tmp_path: Path) -> None:
    """Windows of 8, streams of 40: old entries leave the 8 bit cache as they leave the other."""
    plain, graph, w = tiny(tmp_path / "plain", None)
    inputs = [{"tokens": tokens(2, 40, seed)} for seed in (0, 1)]
    scales = cache_scales(Session(plain, threads=1, spin=False), inputs)
    assert len(scales) == 8 and all(s.shape == (2, 16) for s in scales.values())
    small, _, _ = tiny(tmp_path / "small", None, cache=scales)
    session = Session(small, threads=1, spin=False)
    session.reset(2, 40)
    assert {a.dtype for a in session.caches().values()} == {np.dtype(np.int8)}
    want, got = (stream(f, [12, *[1] * 28]) for f in (plain, small))

    def off(a: np.ndarray) -> float:
        return float(np.linalg.norm(a - want[:, -a.shape[1] :]) / np.linalg.norm(want[:, -a.shape[1] :]))

    assert 1e-5 < off(got) < 0.1 and off(got[:, -8:]) < 0.1
    assert off(stream(small, [20, 19, 1])[:, -1:]) < 0.1 and off(stream(small, [40])) < 0.1
    # One entry too many in sight, in float32, is further off than all 8 bit entries.
    wider = optimise(step(gemma(d=64, ff=96, window=9), last=True), "onnx", "step")
    wrong = export(wider, w.__getitem__, tmp_path / "wider", max_positions=64)
    assert off(stream(wrong, [12, *[1] * 28])) > 0.2


def correlated(rows: int, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((rows // 4, rows))
    return (rng.standard_normal((count, rows // 4)) @ mix + 0.1 * rng.standard_normal((count, rows))).astype(np.float32)


@pytest.mark.parametrize("levels,block", [(INT4, 32), (INT4, 128), (INT4, 64), (INT8, 128), (INT7, 192)])
def test_compensation_makes_products_better(levels: object, block: int) -> None:
    """On correlated inputs never seen in calibration, while each weight alone is further off."""
    rng = np.random.default_rng(1)
    w = rng.standard_normal((40, 192)).astype(np.float32)
    x, y = correlated(192, 4000), correlated(192, 500, seed=0)[::-1][:100]
    alone = rounded(w, levels, block).dequantised()  # type: ignore[arg-type]
    together = rounded(w, levels, block, x.T @ x / len(x)).dequantised()  # type: ignore[arg-type]

    def error(v: np.ndarray) -> float:
        return float(np.linalg.norm(y @ (v - w).T) / np.linalg.norm(y @ w.T))

    assert error(together) < 0.6 * error(alone)
    assert np.linalg.norm(together - w) > np.linalg.norm(alone - w)


def test_scales_leave_less_error_than_fitting_the_largest() -> None:
    w = np.random.default_rng(0).standard_normal((64, 4, 32)).astype(np.float32)
    scale = best_scales(w, INT4)[..., None]
    fitted = np.take_along_axis(w, np.abs(w).argmax(-1)[..., None], -1) / -8

    def error(s: np.ndarray) -> np.ndarray:
        return np.square(w - np.clip(np.rint(w / s), -8, 7) * s).sum(-1)

    assert np.all(error(scale) <= error(fitted) * 1.0001) and error(scale).mean() < 0.95 * error(fitted).mean()
    assert np.all(rounded(np.zeros((2, 40), np.float32), INT4, 32).dequantised() == 0)


def test_moments_are_those_of_what_is_multiplied() -> None:
    """The first projection's input is the normed embedding; gate and up share theirs; groups change nothing."""
    graph = gemma(d=64, ff=96)
    w = weights(graph)
    made = optimise(graph, "onnx", "step")
    lowered = lower(made, w.__getitem__, max_positions=64)
    inputs = [{"tokens": tokens(2, 12, seed)} for seed in (0, 1)]
    (found,) = list(second_moments(lowered, inputs))
    x = np.concatenate([w["table"][i["tokens"]].reshape(-1, 64) for i in inputs]).astype(np.float64) * 8
    name = next(n for n in w if "layer[0].attend" in n and "pre" in n)
    normed = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * (1 + w[name])
    first = next(n for n in found if "layer[0].attend" in n and "query" in n)
    want = normed.T @ normed / len(normed)
    assert np.abs(found[first] - want).max() < 1e-4 * np.abs(want).max()
    assert found["lm.layer[0].feed.glu.gate.weight"] is found["lm.layer[0].feed.glu.up.weight"]
    assert "table" in found and found["table"].shape == (64, 64)
    groups = list(second_moments(lowered, inputs, {"table", first}, at_once=1))
    assert [set(g) for g in groups] == [{first}, {"table"}]
    assert np.array_equal(groups[0][first], found[first])
