"""Every op's ONNX rule against the op's own meaning, on uses drawn at random."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from planform.backends.onnx import EXCLUDED, RULES, CannotLower, difference, lower, run
from planform.backends.onnx.emitter import joined
from planform.backends.onnx.rules.registry import rule
from planform.compiler.ir import Builder, Graph, Input, Origin, Parameter
from planform.compiler.ops import OPS, At, Op
from planform.compiler.ops.linear import Linear, Unembed
from planform.compiler.ops.norm import RmsNorm, Softmax
from planform.compiler.size import symbol
from planform.compiler.types import Dim, TensorType

DRAWN = sorted(set(OPS) - set(EXCLUDED) - {"repeat"})


def graph_of(op: Op, types: list[TensorType]) -> Graph:
    b = Builder("example")
    found = b.emit(op, *(b.add(Input(f"x{i}", t)) for i, t in enumerate(types)))
    outs = found if isinstance(found, tuple) else (found,)
    return b.finish({f"y{i}": v for i, v in enumerate(outs)})


def reference(op: Op, types: list[TensorType], arrays: list[np.ndarray]) -> list[np.ndarray]:
    outs = op.infer(*types)
    at = At(tuple(types), (outs,) if isinstance(outs, TensorType) else tuple(outs))
    wide = [np.asarray(a, np.float64) if t.is_float else np.asarray(a, t.numpy) for t, a in zip(types, arrays)]
    found = op.reference(at, *wide)
    return [np.asarray(f) for f in (found if isinstance(found, tuple) else (found,))]


def nothing(name: str) -> np.ndarray:
    raise AssertionError("these graphs have no parameters")


def test_every_op_is_lowered_or_excluded() -> None:
    own = {n for n, cls in OPS.items() if cls.decompose is not Op.decompose}
    assert set(OPS) <= set(RULES) | set(EXCLUDED) | own | {"repeat"}
    assert all(EXCLUDED.values())
    assert not set(RULES) & set(EXCLUDED)
    assert set(RULES) | set(EXCLUDED) <= set(OPS)


@pytest.mark.parametrize("name", DRAWN)
def test_rule_means_what_the_op_means(name: str) -> None:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    for _ in range(12):
        op, drawn = OPS[name].draw(rng)
        types, arrays = [t for t, _ in drawn], [a for _, a in drawn]
        lowered = lower(graph_of(op, types), nothing)
        onnx.checker.check_model(ir.to_proto(lowered.model), full_check=True)
        got = run(lowered, {f"x{i}": a for i, a in enumerate(arrays)})
        for i, want in enumerate(reference(op, types, arrays)):
            result = got[f"y{i}"]
            if i == 0 and name in ("attend_cached", "linear_recurrence_cached"):
                # Rows of a padded chunk are arbitrary from their count on.
                valid = np.arange(want.shape[1]) < arrays[-1][:, None]
                result, want = result[valid], want[valid]
            error = difference(result, want)
            assert error < 2e-5, f"{op} of {[str(t) for t in types]}: result {i} is off by {error:.1e}"


BATCH, TIME = Dim("batch", symbol("batch")), Dim("time", symbol("time"))
STREAM, HEADS = TensorType("i32", (BATCH, TIME)), (Dim("heads", 2), Dim("head_dim", 4))
SEQUENCE = TensorType("f32", (BATCH, TIME, *HEADS))
TWO_BATCHES = TensorType("f32", (BATCH, Dim("rows", 2), TIME, *HEADS))
OPEN: dict[str, tuple[Op, list[TensorType]]] = {
    "add": (OPS["add"](), [TensorType("f32", (BATCH, TIME)), TensorType("f32", (TIME,))]),
    "softmax": (Softmax(), [TensorType("f32", (BATCH, TIME))]),
    "sum": (OPS["sum"]((BATCH,)), [TensorType("f32", (BATCH, TIME))]),
    "iota": (OPS["iota"]((BATCH, TIME)), []),
    "next": (OPS["next"](), [STREAM, STREAM]),
    "rope": (OPS["rope"](), [SEQUENCE, STREAM]),
    "attend": (OPS["attend"](0.5, True, 3, 2.0), [SEQUENCE] * 3 + [STREAM, STREAM]),
    "attend over no stream": (OPS["attend"](0.5, False, 3), [SEQUENCE] * 3),
    "attend in two batches": (OPS["attend"](0.5, True), [TWO_BATCHES] * 3),
    "rearrange": (OPS["rearrange"]("b t h d -> (b t) d h"), [SEQUENCE]),
}


@pytest.mark.parametrize("name", OPEN)
def test_one_model_serves_every_size(name: str) -> None:
    """Sizes that stay symbolic: one model, run with several batches and times."""
    rng = np.random.default_rng(1)
    op, types = OPEN[name]
    b = Builder("example")
    sizes = b.add(Input("sizes", TensorType("f32", (BATCH, TIME))))  # where an op without inputs gets them from
    y = b.emit(op, *(b.add(Input(f"x{i}", t)) for i, t in enumerate(types)))
    lowered = lower(b.finish({"y": y, "same": b.emit(OPS["neg"](), sizes)}), nothing)
    onnx.checker.check_model(ir.to_proto(lowered.model), full_check=True)
    for env in ({"batch": 1, "time": 1}, {"batch": 2, "time": 5}, {"batch": 3, "time": 2}):
        bound = [t.bind(env) for t in types]
        steps = np.tile(np.arange(env["time"], dtype=np.int32), (env["batch"], 1))
        arrays = [rng.uniform(-1, 1, t.shape({})) if t.is_float else steps for t in bound]
        (want,) = reference(op.bind(env), bound, arrays)
        feed = {f"x{i}": a for i, a in enumerate(arrays)}
        got = run(lowered, {**feed, "sizes": np.zeros((env["batch"], env["time"]))})["y"]
        assert difference(got, want) < 2e-5


def test_an_op_of_somebody_else_goes_through_its_own_definition() -> None:
    @dataclass(frozen=True)
    class Twice(Op):
        name: ClassVar[str] = "test_twice"

        def infer(self, *inputs: TensorType) -> TensorType:
            return inputs[0]

        def decompose(self, b: Builder, *values: Any) -> Any:
            once = b.emit(Softmax(), values[0])
            return b.emit(OPS["add"](), once, once)

    x = np.random.default_rng(0).normal(size=(2, 3))
    lowered = lower(graph_of(Twice(), [TensorType("f32", (Dim("batch", 2), Dim("d", 3)))]), nothing)
    want = 2 * np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    assert difference(run(lowered, {"x0": x})["y0"], want) < 2e-5


def test_an_op_without_any_form_is_refused_with_its_place() -> None:
    @dataclass(frozen=True)
    class Opaque(Op):
        name: ClassVar[str] = "test_opaque"

        def infer(self, *inputs: TensorType) -> TensorType:
            return inputs[0]

    b = Builder("example")
    x = b.add(Input("x", TensorType("f32", (Dim("d", 3),))))
    b.origin = Origin("lm.layer.mystery", "mine.yaml:7:3")
    graph = b.finish({"y": b.emit(Opaque(), x)})
    with pytest.raises(CannotLower, match=r"`test_opaque` has neither.*lm\.layer\.mystery, mine\.yaml:7:3"):
        lower(graph, nothing)


def test_a_training_op_is_refused_with_the_reason() -> None:
    op, drawn = OPS["cross_entropy"].draw(np.random.default_rng(0))
    with pytest.raises(CannotLower, match="training only"):
        lower(graph_of(op, [t for t, _ in drawn]), nothing)


def test_two_rules_for_one_op_are_refused() -> None:
    with pytest.raises(ValueError, match="has an ONNX rule already"):
        rule("add")(RULES["add"])


def test_weights_are_laid_out_when_written_and_shared_where_they_are_tied() -> None:
    """A matrix of three dims is one initializer of two; offset 1 is in the scale; a tied table is there once."""
    asked: list[str] = []
    rng = np.random.default_rng(0)
    dims = {"table": (7, 4), "out": (4, 3, 2), "scale": (4,)}
    arrays = {k: rng.normal(size=s) for k, s in dims.items()}

    def get(name: str) -> np.ndarray:
        asked.append(name)
        return arrays[name]

    b = Builder("lm")
    d, vocab = Dim("d", 4), Dim("vocab", 7)
    x = b.add(Input("x", TensorType("i32", (Dim("batch", symbol("batch")),))))
    table = b.add(Parameter("table", TensorType("f32", (vocab, d)), path="table"))
    out = b.add(Parameter("out", TensorType("f32", (d, Dim("a", 3), Dim("b", 2))), path="out"))
    scale = b.add(Parameter("scale", TensorType("f32", (d,)), path="scale"))
    h = b.emit(RmsNorm(1.0), b.emit(OPS["embed"](), x, table), scale)
    graph = b.finish({"y": b.emit(Linear((Dim("a", 3), Dim("b", 2))), h, out), "logits": b.emit(Unembed(), h, table)})
    lowered = lower(graph, get)
    assert asked == [], "weights must not be read before they are written"
    shapes = {str(v.name): v.shape.numpy() for v in lowered.model.graph.initializers.values()}
    assert {k: s for k, s in shapes.items() if not k.startswith("constant")} == {
        "out:matrix": (4, 6), "scale+1": (4,), "table": (7, 4),
    }  # fmt: skip
    ids = np.array([1, 5, 6], np.int32)
    got = run(lowered, {"x": ids})
    e = arrays["table"][ids]
    n = e / np.sqrt((e * e).mean(-1, keepdims=True) + 1e-6) * (1 + arrays["scale"])
    assert difference(got["logits"], n @ arrays["table"].T) < 2e-5
    assert difference(got["y"], np.einsum("bd,dxy->bxy", n, arrays["out"])) < 2e-5


def test_names_of_joined_weights() -> None:
    assert joined(["a.q.weight", "a.k.weight"]) == "a.(q,k).weight"
    assert joined(["x", "y"]) == "(x,y)"
    assert joined(["a.b"]) == "a.b"
