"""Losses against the distribution of another head: which become one op, and what is said of those that don't."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.golden_files import check_golden

from planform.backends.reference import run
from planform.compiler.ir import Builder, Graph, Origin, Parameter, Value, verify
from planform.compiler.ops.elementwise import Add, Div, Mul, Stop, number
from planform.compiler.ops.linear import Unembed
from planform.compiler.ops.loss import CrossEntropy
from planform.compiler.ops.norm import Softcap, Softmax
from planform.compiler.passes.base import Trace
from planform.compiler.passes.loss_head import LossHead
from planform.compiler.passes.pipeline import optimise
from planform.compiler.text import to_text
from planform.compiler.types import TensorType

ROWS = "batch=2, time=3"
INPUTS = {
    "x": f"f32[{ROWS}, d=4]",
    "table": "f32[vocab=7, d=4]",
    "y": f"f32[{ROWS}, e=5]",
    "other": "f32[vocab=7, e=5]",
}


class Heads:
    """A student's and a teacher's logits, under construction."""

    def __init__(self, cap: float | None = 30.0, other_cap: float | None = 30.0) -> None:
        self.b = b = Builder("distil")
        self.of: dict[str, Value] = {}
        for name, text in INPUTS.items():
            self.of[name] = b.add(Parameter(name, TensorType.parse(text), path=name, frozen=name in ("y", "other")))
        self.targets = b.add(Parameter("targets", TensorType.parse(f"i32[{ROWS}]"), path="targets"))
        self.student = self.head("x", "table", cap)
        self.teacher = self.head("y", "other", other_cap)

    def head(self, x: str, table: str, cap: float | None) -> Any:
        z = self.b.emit(Unembed(), self.of[x], self.of[table])
        return self.b.emit(Softcap(cap), z) if cap else z

    def at(self, z: Any, temperature: float) -> Any:
        return self.b.emit(Div(), z, number(self.b, temperature))

    def loss(self, z: Any, targets: Any) -> Any:
        self.b.origin = Origin("loss", "student.yaml:9:9")
        return self.b.emit(CrossEntropy(), z, targets)

    def soft(self, z: Any, target: Any) -> Any:
        return self.loss(z, self.b.emit(Softmax(), target))


def values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {n: TensorType.parse(t).shape({}) for n, t in INPUTS.items()}
    return {n: rng.normal(size=s) for n, s in shapes.items()} | {"targets": rng.integers(-1, 7, (2, 3))}


def ops(graph: Graph) -> list[str]:
    return [n.op.name for n in graph.nodes if n.op.name != "constant"]


def told(graph: Graph) -> list[str]:
    trace = Trace()
    LossHead()(graph, trace)
    return [str(e) for e in trace.explanations]


def same(graph: Graph, after: Graph) -> None:
    verify(after)
    want, got = (run(g, values(), {})["loss"] for g in (graph, after))
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("other_cap", [None, 20.0])
@pytest.mark.parametrize("temperature", [None, 2.0])
def test_two_heads_become_one_op(cap: float | None, other_cap: float | None, temperature: float | None) -> None:
    h = Heads(cap, other_cap)
    heads = (h.student, h.teacher) if temperature is None else (h.at(h.student, 2.0), h.at(h.teacher, 2.0))
    graph = h.b.finish({"loss": h.soft(*heads)})
    after = optimise(graph, "xla", "training")
    assert ops(after) == ["linear_soft_cross_entropy"]
    scale = 1.0 if temperature is None else 0.5
    op = after.nodes[-1].op
    assert (op.softcap, op.scale, op.target_softcap, op.target_scale) == (cap, scale, other_cap, scale)
    same(graph, after)


def test_golden() -> None:
    h = Heads()
    hard, soft = h.loss(h.student, h.targets), h.soft(h.at(h.student, 2.0), h.at(h.teacher, 2.0))
    half = number(h.b, 0.5)
    graph = h.b.finish({"loss": h.b.emit(Add(), h.b.emit(Mul(), half, hard), h.b.emit(Mul(), half, soft))})
    trace = Trace()
    after = optimise(graph, "xla", "training", trace)
    same(graph, after)
    assert "unembed" not in ops(after)
    check_golden("passes/loss_head_mixed.txt", "".join(f"# {e}\n" for e in trace.explanations) + to_text(after))


@pytest.mark.parametrize("where", ["probabilities", "logits"])
def test_a_stopped_target_stays_stopped(where: str) -> None:
    h = Heads()
    b = h.b
    if where == "logits":
        target = b.emit(Softmax(), b.emit(Stop(), h.teacher))
    else:
        target = b.emit(Stop(), b.emit(Softmax(), h.teacher))
    graph = b.finish({"loss": h.loss(h.student, target)})
    after = LossHead()(graph)
    same(graph, after)
    assert ops(after) == ["stop", "stop", "linear_soft_cross_entropy"]
    assert [n.inputs[0].name for n in after.nodes[:2]] == ["y", "other"]


@pytest.mark.parametrize("wanted", ["student", "teacher"])
def test_logits_that_are_wanted_whole_are_used_whole(wanted: str) -> None:
    h = Heads()
    graph = h.b.finish({"loss": h.soft(h.student, h.teacher), "logits": getattr(h, wanted)})
    assert LossHead()(graph) is graph
    reason = "the result of `softcap` is also used by output `logits`"
    assert f"loss_head: near miss at loss (student.yaml:9:9): {reason}" in told(graph)


def test_a_loss_that_can_not_do_without_keeps_the_others_from_trying() -> None:
    h = Heads()
    given = h.b.emit(Softmax(), h.b.add(Parameter("p", TensorType.parse(f"f32[{ROWS}, vocab=7]"), path="p")))
    hard, odd = h.loss(h.student, h.targets), h.loss(h.student, given)
    graph = h.b.finish({"loss": h.b.emit(Add(), hard, odd)})
    assert LossHead()(graph) is graph
    assert any("is also used by `cross_entropy` at loss" in line for line in told(graph))


def test_a_factor_that_is_no_constant_is_no_temperature() -> None:
    h = Heads()
    t = h.b.add(Parameter("t", TensorType("f32", ()), path="t"))
    graph = h.b.finish({"loss": h.soft(h.b.emit(Mul(), h.student, t), h.teacher)})
    assert LossHead()(graph) is graph
    assert "loss_head: near miss at loss (student.yaml:9:9): %t is no constant" in told(graph)


def test_logits_that_are_wanted_whole_further_on_are_used_whole() -> None:
    h = Heads()
    warm = h.b.emit(Mul(), h.student, number(h.b, 0.5))
    graph = h.b.finish({"loss": h.loss(h.student, h.targets), "p": h.b.emit(Softmax(), warm)})
    assert LossHead()(graph) is graph
    assert any("the result of `softcap` is also used by `mul`" in line for line in told(graph))
