"""Every op keeps the contract: documented, meant the same in simpler ops and step by step, lowered or excluded."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from planform.backends import onnx, xla
from planform.backends.reference import run, zeros
from planform.compiler.analyses.reach import node_reach
from planform.compiler.ir import Builder, Graph, Input, Value, verify
from planform.compiler.ops import OPS, At, Op
from planform.compiler.ops.contract import register
from planform.compiler.passes.stateful import stateful
from planform.compiler.size import symbol
from planform.compiler.text import from_text, op_text, to_text
from planform.compiler.types import Dim, TensorType, TypeMismatch

DRAWN = sorted(set(OPS) - {"repeat"})  # repetitions have their own file, test_repeat.py
seeds = st.integers(0, 2**32 - 1)


def use(name: str, seed: int) -> tuple[Graph, dict[str, np.ndarray]]:
    """A graph of one node, of the op's own random example, and its inputs."""
    return _use(name, seed, stream=False)


def use_along_stream(name: str, seed: int) -> tuple[Graph, dict[str, np.ndarray]]:
    """The same with the dim `time` as a stream of any length; skipped where the example fixes its length."""
    try:
        return _use(name, seed, stream=True)
    except TypeMismatch:
        reject()


def _use(name: str, seed: int, stream: bool) -> tuple[Graph, dict[str, np.ndarray]]:
    op, inputs = OPS[name].draw(np.random.default_rng(seed))
    b = Builder(name, stream="time" if stream else None)
    values = []
    for i, (t, _) in enumerate(inputs):
        dims = [Dim("time", symbol("time")) if stream and d.name == "time" else d for d in t.dims]
        values.append(b.add(Input(f"x{i}", t.with_dims(dims))))
    made = b.emit(_streaming_dims(op) if stream else op, *values)
    results = {f"y{i}": v for i, v in enumerate(made if isinstance(made, tuple) else (made,))}
    return b.finish(results), {v.name: array for v, (_, array) in zip(values, inputs)}


def _streaming_dims(op: Op) -> Op:
    """The op with `time` in its attributes as a symbol."""

    def one(v: Any) -> Any:
        if isinstance(v, Dim) and v.name == "time":
            return Dim("time", symbol("time"))
        return tuple(map(one, v)) if isinstance(v, tuple) else v

    return type(op)(**{k: one(v) for k, v in op.attributes().items()})


COMMON = {"eps", "dtype", "value"}  # attributes that mean the same everywhere


@pytest.mark.parametrize("name", sorted(OPS))
def test_documented(name):
    cls = OPS[name]
    assert cls.name == name and cls.family
    assert cls.__doc__ and "__doc__" in vars(cls), "an op says itself what it means"
    assert inspect.cleandoc(cls.__doc__).split("\n\n")[0].rstrip().endswith((".", ":"))
    told = "".join(c.__doc__ or "" for c in cls.__mro__ if issubclass(c, Op) and c is not Op and c.__name__[0] != "_")
    unexplained = {f.name for f in fields(cls)} - COMMON - set(re.findall(r"\w+", told))
    assert not unexplained


@pytest.mark.parametrize("name", DRAWN)
@given(seed=seeds)
@settings(max_examples=15, deadline=None)
def test_examples_are_legal_and_shapes_as_the_rule_says(name, seed):
    op, inputs = OPS[name].draw(np.random.default_rng(seed))
    types = [t for t, _ in inputs]
    for t, array in inputs:
        assert np.shape(array) == t.shape({})
        assert np.issubdtype(np.asarray(array).dtype, np.floating) == t.is_float
    found = op.infer(*types)
    outs = (found,) if isinstance(found, TensorType) else tuple(found)
    arrays = op.reference(At(tuple(types), outs), *(a for _, a in inputs))
    for t, array in zip(outs, arrays if isinstance(arrays, tuple) else (arrays,), strict=True):
        assert np.shape(array) == t.shape({})
        assert np.all(np.isfinite(np.asarray(array, np.float64)))
    cost = op.cost(*types)
    assert isinstance(cost.flops, int) and cost.flops >= 0 and isinstance(cost.elements, int) and cost.elements > 0
    assert type(op)(**op.attributes()) == op and hash(op) == hash(op)


@pytest.mark.parametrize("name", DRAWN)
@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_nodes_are_valid_and_round_trip(name, seed):
    graph, _ = use(name, seed)
    verify(graph)
    assert to_text(from_text(to_text(graph))) == to_text(graph)


def decomposed(graph: Graph) -> Graph | None:
    """The graph with its one node in simpler ops; None where the op is core."""
    (node,) = graph.nodes
    b = Builder.beside(graph)
    found: Any = node.op.decompose(b, *node.inputs)
    if found is None:
        return None
    results = (found,) if isinstance(found, Value) else tuple(found)
    return Graph(graph.name, graph.inputs, tuple(b.nodes), dict(zip(graph.outputs, results, strict=True)), graph.stream)


@pytest.mark.parametrize("name", DRAWN)
@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_decompositions_mean_the_same(name, seed):
    graph, inputs = use(name, seed)
    simpler = decomposed(graph)
    if simpler is None:
        return
    verify(simpler)
    assert name not in {n.op.name for n in simpler.nodes}
    assert [v.type for v in simpler.outputs.values()] == [v.type for v in graph.outputs.values()]
    want, got = run(graph, {}, inputs), run(simpler, {}, inputs)
    for key, array in want.items():
        np.testing.assert_allclose(got[key], array, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", DRAWN)
@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_results_depend_on_no_more_than_the_reach(name, seed):
    graph, inputs = use_along_stream(name, seed)
    (node,) = graph.nodes
    bound, out_axis = node_reach(node, "time"), node.output.type.axis("time")
    if out_axis is None or bound.back is None and bound.ahead is None:
        return
    own = graph.inputs[: len(graph.inputs) - len(node.op.reads())]
    if all(x.type.axis("time") is None for x in own):
        return
    before = np.moveaxis(run(graph, {}, inputs)["y0"], out_axis, 0)
    for x in own:
        axis = x.type.axis("time")
        if axis is None or x.type.dtype == "bool":
            continue
        for at in range(inputs[x.name].shape[axis]):
            # Another entry at one place: for integers one that is legal elsewhere in the row.
            slot = (slice(None),) * axis + (at,)
            changed = np.array(inputs[x.name])
            changed[slot] = np.roll(changed, 1, axis)[slot] if not x.type.is_float else changed[slot] * 0.9
            after = np.moveaxis(run(graph, {}, {**inputs, x.name: changed})["y0"], out_axis, 0)
            for t in range(len(before)):
                too_far = bound.back is not None and t - at > bound.back
                too_early = bound.ahead is not None and at - t > bound.ahead
                if too_far or too_early:
                    np.testing.assert_array_equal(before[t], after[t])


@pytest.mark.parametrize("name", DRAWN)
@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_ops_with_state_mean_the_same_step_by_step(name, seed):
    graph, inputs = use_along_stream(name, seed)
    (node,) = graph.nodes
    bound = node_reach(node, "time")
    if bound.ahead != 0 or node.op.streaming(*(v.type for v in node.inputs)) is None:
        return
    # One document, positions from zero: the defaults of what the op reads.
    for v, kind in zip(graph.inputs[len(graph.inputs) - len(node.op.reads()) :], node.op.reads()):
        v.default = {"position": "iota", "document": "zeros"}[kind]
        del inputs[v.name]
    step = stateful(graph)
    verify(step)
    axes = {v.name: v.type.axis("time") for v in graph.inputs}
    time = next(a.shape[axes[k]] for k, a in inputs.items() if axes[k] is not None)
    cuts = sorted(np.random.default_rng(seed).integers(1, time + 1, 2)) if time > 1 else []
    states = zeros(step, {"batch": 2, "capacity": time})
    parts = []
    edges = [0, *cuts, time]
    for a, b in zip(edges, edges[1:]):
        if a == b:
            continue
        chunk = {k: v if axes[k] is None else np.take(v, range(a, b), axes[k]) for k, v in inputs.items()}
        states = run(step, {}, chunk, states)
        parts.append(states.pop("y0"))
    want = run(graph, {}, inputs)["y0"]
    np.testing.assert_allclose(np.concatenate(parts, node.output.type.axis("time")), want, rtol=1e-9, atol=1e-12)


def missing(name: str, rules: dict[str, Any], excluded: dict[str, str], seen: frozenset[str] = frozenset()) -> set[str]:
    """Ops that a backend would meet without a rule, a reason or a simpler form, on its way from this one."""
    if name in rules or name in excluded:
        return set()
    if name in seen:
        return {name}
    found: set[str] = set()
    for seed in range(6):
        simpler = decomposed(use(name, seed)[0])
        if simpler is None:
            return {name}
        for node in simpler.nodes:
            found |= missing(node.op.name, rules, excluded, seen | {name})
    return found


@pytest.mark.parametrize("backend", [xla, onnx], ids=["xla", "onnx"])
@pytest.mark.parametrize("name", DRAWN)
def test_lowered_or_excluded_for_a_reason(name, backend):
    assert not missing(name, backend.RULES, backend.EXCLUDED)
    assert not (name in backend.RULES and name in backend.EXCLUDED)


@pytest.mark.parametrize("backend", [xla, onnx], ids=["xla", "onnx"])
def test_tables_of_backends_name_ops_that_exist(backend):
    assert set(backend.RULES) | set(backend.EXCLUDED) <= set(OPS)
    assert all(len(reason) > 15 for reason in backend.EXCLUDED.values())


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="already registered by .*norm"):
        register(OPS["softcap"])
    assert op_text(OPS["softcap"](2.0)) == "softcap(cap=2.0)"


OUTSIDE = '''
from dataclasses import dataclass
import numpy as np
from planform.compiler.ops import Op, register
from planform.compiler.ops.elementwise import Exp, Add, Log, number


@register
@dataclass(frozen=True)
class Softplus(Op):
    """log(1 + exp(sharpness * x)) / sharpness, sharpness 1."""

    name = "my_softplus"
    family = "activation"
    shift: float = 0.0

    def infer(self, *inputs):
        return inputs[0]

    def reference(self, at, *arrays):
        return np.log1p(np.exp(arrays[0])) + self.shift

    def decompose(self, b, *values):
        y = b.emit(Log(), b.emit(Add(), b.emit(Exp(), values[0]), number(b, 1.0)))
        return b.emit(Add(), y, number(b, self.shift))
'''
PROGRAM = '''
import numpy as np
from planform.backends.reference import run
from planform.backends.xla import Policy, lower
from planform.compiler.check import check
from planform.compiler.elaborate import elaborate
from planform.compiler.text import from_text, to_text
from planform.spec import load_text

spec = load_text("""
planform: 1
model: outside
graphs:
  f:
    inputs:
      x: float[batch, time]
    body: |
      y = x >> my_softplus(shift=1)
""", "outside.yaml")
graph = elaborate(spec)
assert to_text(from_text(to_text(graph))) == to_text(graph)
x = np.linspace(-2, 2, 6).reshape(2, 3)
want = run(graph, {}, {"x": x})["y"]
np.testing.assert_allclose(want, np.log1p(np.exp(x)) + 1)
np.testing.assert_allclose(lower(graph, Policy())({}, {"x": x.astype(np.float32)})["y"], want, rtol=1e-6)
print("same")
'''


def test_ops_from_outside_the_tree(tmp_path: Path):
    """An installed package names its module under the entry point group `planform.ops`: that is all."""
    (tmp_path / "my_ops.py").write_text(OUTSIDE)
    info = tmp_path / "my_ops-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-ops\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[planform.ops]\nmine = my_ops\n")
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(tmp_path), str(root / ".pkg")])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "same\n", done.stderr
