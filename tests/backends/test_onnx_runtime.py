"""What the installed onnxruntime must have and do for this backend; a new version that lacks it fails here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state

from planform.backends.onnx import Session, load, lower, run
from planform.backends.onnx.emitter import MICROSOFT, Emitter, is_weight
from planform.backends.onnx.lowering import IR_VERSION, OPSET, read
from planform.backends.onnx.session import options

from .onnx_models import decoding, fused, gemma, step, tokens, weights

# Ops with a float32 kernel of their own, by the version that opset 24 selects. Others would be expanded into
# dozens of small ones (as Attention is from opset 25 on) or fail.
KERNELS = {
    ("", "Attention"): 24, ("", "RotaryEmbedding"): 23, ("", "RMSNormalization"): 23, ("", "Gelu"): 20,
    ("", "LayerNormalization"): 17, ("", "MatMul"): 13, ("", "Einsum"): 12, ("", "GatherND"): 13,
    (MICROSOFT, "GroupQueryAttention"): 1, (MICROSOFT, "SkipSimplifiedLayerNormalization"): 1,
    (MICROSOFT, "FusedMatMul"): 1, (MICROSOFT, "QuickGelu"): 1,
}  # fmt: skip


@pytest.mark.parametrize("domain,name", KERNELS)
def test_the_runtime_has_the_kernel(domain: str, name: str) -> None:
    found = [
        k for k in state.get_all_opkernel_def()
        if k.op_name == name and k.domain == domain and k.provider == "CPUExecutionProvider"
    ]  # fmt: skip
    version = KERNELS[domain, name]
    assert any(k.version_range[0] == version <= k.version_range[1] for k in found), [k.version_range for k in found]


def test_every_standard_op_in_use_is_older_than_the_opset() -> None:
    """`KERNELS` names the versions that a model of our opset really selects."""
    for (domain, name), version in KERNELS.items():
        if not domain:
            assert onnx.defs.get_schema(name, OPSET).since_version == version


def test_sizes_that_are_known_are_no_longer_open() -> None:
    lowered = lower(fused(step(gemma(), last=True)), weights(gemma()).__getitem__)
    (given,) = (i for i in load(lowered, options(sizes={"batch": 3})).get_inputs() if i.name == "tokens")
    assert given.shape[0] == 3 and not isinstance(given.shape[1], int)


@pytest.mark.parametrize("packed, widths", [(True, [256, 44]), (False, [128, 128, 44])])
def test_a_prompt_is_taken_in_chunks(packed: bool, widths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    lowered = lower(fused(step(gemma(), last=True)), weights(gemma()).__getitem__, max_positions=512)
    session, taken = Session(lowered, packed=packed), []
    advance = session.advance

    def seen(tokens: np.ndarray, count: np.ndarray | None = None) -> np.ndarray:
        taken.append(tokens.shape[1])
        return advance(tokens, count)

    monkeypatch.setattr(session, "advance", seen)
    session.reset(1, 512)
    session.prefill(tokens(1, 300))
    assert taken == widths


def optimised(model: ir.Model, folder: Path) -> Counter[str]:
    """Op counts of what the runtime makes of a model, where it takes one entry."""
    settings = options(1, False)
    settings.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return decoding(onnx.load(folder / "optimised.onnx").graph)


def test_what_runs_is_what_was_written(tmp_path: Path) -> None:
    """The runtime keeps our kernels and finds little to add: an exact histogram of the decoding graph."""
    graph = fused(step(gemma(), last=True))
    found = optimised(lower(graph, weights(gemma()).__getitem__).model, tmp_path)
    assert found == {
        "GroupQueryAttention": 4,
        "MatMul": 20,
        "FusedMatMul": 1,
        "SkipSimplifiedLayerNormalization": 7,
        "RMSNormalization": 10,
        "Gelu": 4,
        "Mul": 4 + 1 + 1,  # gates, sqrt(d), the final cap, whose first half goes into the product before it
        "Tanh": 1,
        "Gather": 1,
        "Add": 3,  # the last residual, length + count (also the new length), the longest row
        "Sub": 2,
        "GatherND": 1,
        "Where": 4,  # padding after each attention
        "Less": 1,
        "Range": 1,
        "Unsqueeze": 5,
        "Cast": 2,
        "Shape": 1,
        "Squeeze": 1,
        "ReduceMax": 1,
        "If": 4 + 2,  # attention of one entry or of many; what the many need, by window and without one
        "GreaterOrEqual": 1,
    }


def test_a_branch_keeps_to_itself_what_it_emits() -> None:
    """What both branches and the rest share is made in each of them, and a branch may give what it was given."""
    m, kind = Emitter(), ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", type=kind, shape=ir.Shape([2]))
    flag = ir.Value(name="flag", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))

    def twice() -> ir.Value:
        return m.shared(("twice",), lambda: m.op("Add", x, x))

    y = m.either(flag, lambda: [m.op("Mul", twice(), m.constant(3.0))], lambda: [x], ir.DataType.FLOAT)
    z = m.op("Mul", m.op("Add", y, twice()), m.constant(3.0))
    z.name, z.type = "z", kind
    used = {v for n in m.nodes for v in read(n) if is_weight(v)}
    graph = ir.Graph([x, flag], [z], nodes=m.nodes, initializers=used, opset_imports={"": OPSET}, name="either")
    model = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString()
    ones = np.ones(2, np.float32)
    for flagged, want in ((True, 24.0), (False, 9.0)):
        assert np.array_equal(run(model, {"x": ones, "flag": np.array(flagged)})["z"], want * ones)


def test_a_cap_comes_before_the_mask() -> None:
    """Of the standard Attention: capping a masked score would let hidden keys be seen."""
    q = np.full((1, 1, 2, 8), 3.0, np.float32)
    value = np.stack([np.ones(8), -np.ones(8)]).astype(np.float32)[None, None]
    mask = np.array([[[[0, -1e30], [0, 0]]]], np.float32)
    names = {"q": q, "k": q, "v": value, "m": mask}
    inputs = [
        ir.Value(name=n, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(a.shape)) for n, a in names.items()
    ]
    node = ir.node("Attention", inputs, attributes={"scale": 1.0, "softcap": 2.0})
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports={"": OPSET}, name="cap")
    model = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y = session.run(None, names)[0]
    assert np.allclose(y[0, 0, 0], 1.0) and np.allclose(y[0, 0, 1], 0.0)
