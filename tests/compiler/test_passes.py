"""Every pass keeps graphs valid and their meaning; what each does stands in tests/golden/passes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.compiler.graphs import ROWS, STREAM, D, Decoder, decoder, decoder_loss, parameters
from tests.compiler.random_graphs import Example, random_example
from tests.compiler.test_known import sampled
from tests.golden_files import check_golden

from planform.backends.reference import run, zeros
from planform.compiler.ir import Argument, Builder, Graph, Input, Origin, Parameter, verify
from planform.compiler.ops import OPS
from planform.compiler.ops.control import Repeat
from planform.compiler.ops.elementwise import Add, Div, Mul, Neg, Pow, Rsqrt, Sqrt, Sub, Tanh, number
from planform.compiler.ops.linear import Linear, Unembed
from planform.compiler.ops.loss import CrossEntropy
from planform.compiler.ops.norm import RmsNorm
from planform.compiler.passes.base import Pass, Trace
from planform.compiler.passes.canonicalise import Canonicalise
from planform.compiler.passes.cse import CommonSubexpressions
from planform.compiler.passes.dead import DeadCode
from planform.compiler.passes.decompose import Decompose, decompose, illegal
from planform.compiler.passes.fixed_interpolation import FixedInterpolation
from planform.compiler.passes.fold import FoldConstants
from planform.compiler.passes.known import known
from planform.compiler.passes.last import LastOnly
from planform.compiler.passes.local_attention import LocalAttention
from planform.compiler.passes.loss_head import LossHead
from planform.compiler.passes.loss_weight import LossWeight
from planform.compiler.passes.map_first import MapFirst
from planform.compiler.passes.pack_qkv import PackQkv
from planform.compiler.passes.patterns import Var, op
from planform.compiler.passes.pipeline import GAINS, explain, optimise, pipeline
from planform.compiler.passes.residual_norm import ResidualNorm
from planform.compiler.passes.rewriting import Rule, apply_rules
from planform.compiler.passes.scale_query import ScaleQuery
from planform.compiler.passes.stateful import Stateful, stateful
from planform.compiler.passes.unroll import Unroll
from planform.compiler.text import equal, from_text, to_text
from planform.compiler.types import Dim, TensorType
from planform.spec import SpecError

CORE = frozenset(
    name for name, cls in OPS.items() if cls.decompose is OPS["add"].decompose or name in ("rope", "linear", "attend")
)
PASSES: list[Pass] = [
    Canonicalise(), CommonSubexpressions(), DeadCode(), Decompose(CORE), FoldConstants(), LocalAttention(block=3),
    FixedInterpolation(), LossHead(), LossWeight(), MapFirst(), PackQkv(), ResidualNorm(), ScaleQuery(), Unroll(),
]  # fmt: skip
HIDDEN = TensorType("f32", (Dim("rows", 3), D))


def algebra() -> Graph:
    """Something for every row of the algebra."""
    b = Builder("algebra")
    x, y = (b.add(Input(n, HIDDEN)) for n in "xy")
    b.origin = Origin("algebra", "a.yaml:2:3")
    one, two, half = (number(b, v) for v in (1.0, 2.0, 0.5))
    z = b.emit(Add(), number(b, 0.0), b.emit(Mul(), x, one))
    z = b.emit(Div(), b.emit(Neg(), b.emit(Neg(), z)), number(b, 4.0))
    z = b.emit(Mul(), b.emit(Mul(), two, z), b.emit(Add(), one, two))
    z = b.emit(Sub(), z, b.emit(Neg(), y))
    z = b.emit(Add(), b.emit(Pow(), z, two), number(b, 3.0))
    z = b.emit(Mul(), z, b.emit(Div(), one, b.emit(Sqrt(), z)))
    z = b.emit(Add(), b.emit(Pow(), z, half), b.emit(Pow(), z, half))
    b.emit(Tanh(), z)
    return b.finish({"z": b.emit(Mul(), b.emit(Neg(), z), b.emit(Neg(), y))})


def wasteful() -> Graph:
    """A repetition of which one carry, one slice, one invariant and one stacked result serve nothing."""
    b = Builder("wasteful", stream="time")
    x, y = (b.add(Input(n, HIDDEN)) for n in "xy")
    b.add(Input("position", ROWS, default="iota"))
    w, v = (b.add(Parameter(n, TensorType("f32", (Dim(None, 2), D)), path=f"layer[0:2].{n}", stacked=1)) for n in "wv")
    inner = Builder("layer")
    types = (HIDDEN, HIDDEN, w.type.without([0]), v.type.without([0]), HIDDEN)
    a, dead, ws, vs, i = (inner.add(Argument(n, t)) for n, t in zip("adwvi", types))
    following = inner.emit(Add(), a, ws)
    unused = inner.emit(Mul(), dead, vs)
    region = inner.finish({"0": following, "1": unused, "2": inner.emit(Tanh(), a), "3": i})
    outs = b.emit(Repeat(2, 2, 2), x, y, w, v, y, region=region)
    return b.finish({"a": outs[0], "stack": outs[2]})


BEFORE = {
    "canonicalise": algebra,
    "cse": algebra,
    "fold_constants": algebra,
    "dead_code": wasteful,
    "decompose": lambda: decoder(1),
    "fixed_interpolation": lambda: known(sampled("linear", 9), {"coords": np.eye(2)}),
    "map_first": lambda: known(sampled("nearest", 9), {"coords": np.linspace(0, 1, 16).reshape(8, 2)}),
    "last_only": lambda: stateful(decoder(2)),
    "local_attention": lambda: decoder_loss(2),
    "loss_head": lambda: decoder_loss(2),
    "loss_weight": lambda: decoder_loss(1),
    "pack_qkv": lambda: decoder(2),
    "residual_norm": lambda: decoder(2),
    "scale_query": lambda: decoder(2),
    "stateful": lambda: decoder(2),
    "unroll": lambda: stateful(decoder(2, nested=True)),
}


@pytest.mark.parametrize("p", [*PASSES, Stateful(), LastOnly()], ids=lambda p: p.name)
def test_golden(p):
    graph, trace = BEFORE[p.name](), Trace()
    text = to_text(graph)
    after = p(graph, trace)
    verify(after)
    assert to_text(graph) == text, "the pass changed the graph it was given"
    assert to_text(after) != text
    told = "".join(f"# {e}\n" for e in trace.explanations)
    check_golden(f"passes/{p.name}.txt", f"# before\n{text}\n# {p.name}\n{told}{to_text(after)}")


@pytest.mark.parametrize("p", PASSES, ids=lambda p: p.name)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_random_graphs_keep_their_meaning(p, seed):
    check(p, random_example(seed))


def check(p: Pass, example: Example, rtol: float = 1e-9) -> Graph:
    """A pass gives a valid graph that means the same, prints and parses, and at rest changes nothing."""
    graph = example.graph
    text = to_text(graph)
    after = p(graph)
    verify(after)
    assert to_text(graph) == text
    assert equal(from_text(to_text(after)), after)
    assert equal(p(after), after)
    want = run(graph, example.parameters, example.inputs)
    got = run(after, example.parameters, example.inputs)
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=rtol, atol=1e-11)
    return after


@pytest.mark.parametrize("p", [Canonicalise(), CommonSubexpressions(), FoldConstants()], ids=lambda p: p.name)
def test_the_algebra_keeps_its_meaning(p):
    rng = np.random.default_rng(0)
    check(p, Example(algebra(), {n: rng.normal(size=(3, 8)) for n in "xy"}))


TOKENS = np.random.default_rng(5).integers(0, 11, (2, 9))
DOCUMENTS = {"document": np.repeat([[0, 0, 0, 1, 1, 1, 1, 2, 2]], 2, 0),
             "position": np.repeat([[0, 1, 2, 0, 1, 2, 3, 0, 1]], 2, 0)}  # fmt: skip


@pytest.mark.parametrize("p", PASSES, ids=lambda p: p.name)
@pytest.mark.parametrize("options", [{"layers": 2}, {"layers": 2, "nested": True}])
def test_a_model_keeps_its_loss(p, options):
    graph = decoder_loss(**options)
    after = p(graph)
    verify(after)
    weights = parameters(graph)
    for extra in ({}, DOCUMENTS):
        inputs = {"tokens": TOKENS, **extra}
        want, got = (run(g, weights, inputs)["loss"] for g in (graph, after))
        np.testing.assert_allclose(got, want, rtol=1e-12)


# ---- what single passes do, and what they say they can't ----


def told(p: Pass, graph: Graph) -> list[str]:
    trace = Trace()
    p(graph, trace)
    return [str(e) for e in trace.explanations]


def test_loss_head_fires_with_its_place():
    assert told(LossHead(), decoder_loss(1)) == ["loss_head: fired at loss (lm.yaml:30:9)"]


def test_loss_head_without_a_cap():
    b = Builder("g")
    x = b.add(Input("x", HIDDEN))
    table = b.add(Parameter("t", TensorType("f32", (Dim("vocab", 5), D)), path="t"))
    y = b.add(Input("y", HIDDEN.without([-1]).with_dtype("i32")))
    graph = LossHead()(b.finish({"loss": b.emit(CrossEntropy(), b.emit(Unembed(), x, table), y)}))
    assert [n.op.name for n in graph.nodes] == ["linear_cross_entropy"]
    assert graph.nodes[0].op.softcap is None


def test_loss_head_says_who_else_uses_the_logits():
    d = Decoder(1)
    b = d.root
    targets = b.add(Input("targets", ROWS))
    b.origin = Origin("loss", "lm.yaml:30:9")
    graph = b.finish({"loss": b.emit(CrossEntropy(), d.logits, targets), "logits": d.logits})
    assert told(LossHead(), graph) == [
        "loss_head: near miss at loss (lm.yaml:30:9): the result of `softcap` is also used by output `logits`"
    ]


def test_loss_head_says_which_op_is_missing():
    b = Builder("g")
    x = b.add(Input("x", HIDDEN))
    w = b.add(Parameter("w", TensorType("f32", (D, Dim("vocab", 5))), path="w"))
    y = b.add(Input("y", HIDDEN.without([-1]).with_dtype("i32")))
    logits = b.emit(Linear((Dim("vocab", 5),)), x, w)
    graph = b.finish({"loss": b.emit(CrossEntropy(), logits, y)})
    assert told(LossHead(), graph) == [
        "loss_head: near miss at cross_entropy: %linear is made by `linear`, not by `unembed`"
    ]


def test_residual_norm_needs_a_sum_that_goes_on():
    assert told(ResidualNorm(), decoder(1)) == [
        "residual_norm: fired at lm.layer.feed.norm (lm.yaml:18:9)",
        "residual_norm: near miss at lm.layer.attend.norm (lm.yaml:13:9): %embed_2 is made by `mul`, not by `add`",
        "residual_norm: near miss at lm.norm (lm.yaml:20:5): nothing else uses the sum",
    ]


def test_residual_norm_moves_the_fused_op_before_the_first_user():
    b = Builder("g")
    x, y = (b.add(Input(n, HIDDEN)) for n in "xy")
    scale = b.add(Parameter("s", HIDDEN.without([0]), path="s"))
    total = b.emit(Add(), x, y)
    early = b.emit(Tanh(), total)
    graph = b.finish({"early": early, "normed": b.emit(RmsNorm(), total, scale)})
    after = check(ResidualNorm(), Example(graph, {"x": np.ones((3, 8)), "y": np.full((3, 8), 2.0)}))
    assert [n.op.name for n in after.nodes] == ["add_rms_norm", "tanh"]


def test_local_attention_says_what_is_missing():
    assert told(LocalAttention(), decoder(1, window=None)) == [
        "local_attention: near miss at lm.layer.attend.core (lm.yaml:16:9): it has no window"
    ]
    assert "it is not causal" in told(LocalAttention(), decoder(1, causal=False))[0]


def test_pack_qkv_keeps_shared_weights_apart():
    d = Decoder(1)
    graph = d.root.finish({"logits": d.logits, "weight": next(v for v in d.root.inputs if v.name == "weight_2")})
    assert told(PackQkv(), graph) == [
        "pack_qkv: near miss at lm.layer.attend.core (lm.yaml:16:9): %weight_2 is also used by output `weight`"
    ]


def test_pack_qkv_packs_keys_and_values_of_another_input():
    b = Builder("g")
    x, e = (b.add(Input(n, TensorType("f32", (*STREAM.dims[:1], Dim("time", 3), Dim(n, 4))))) for n in "xe")
    heads = (Dim("heads", 2), Dim("head_dim", 4))
    parts = []
    for source, name in ((x, "q"), (e, "k"), (e, "v")):
        w = b.add(Parameter(name, TensorType("f32", (source.type.dims[-1], *heads)), path=name))
        parts.append(b.emit(Linear(heads), source, w))
    graph = b.finish({"y": b.emit(OPS["attend"](scale=0.5), *parts)})
    after = PackQkv()(graph)
    verify(after)
    assert [n.op.name for n in after.nodes] == ["linear", "linear_packed", "attend"]


def test_scale_query_goes_through_rotation_into_its_own_part_of_a_joint_product():
    graph = PackQkv()(decoder(1))
    after = ScaleQuery()(graph)
    verify(after)
    (attend,) = (n for n in after.walk() if n.op.name == "attend")
    (product,) = (n for n in after.walk() if n.op.name == "linear_packed")
    assert attend.op.scale == 1
    assert [after.producers()[v].op.name for v in product.inputs[1:] if v in after.producers()] == ["mul"]
    weights = parameters(graph)
    want, got = (run(g, weights, {"tokens": TOKENS})["logits"] for g in (graph, after))
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_scale_query_says_what_is_in_the_way():
    d = Decoder(1)
    graph = d.root.finish({"logits": d.logits, "weight": next(v for v in d.root.inputs if v.name == "weight")})
    place = "scale_query: near miss at lm.layer.attend.core (lm.yaml:16:9): "
    assert told(ScaleQuery(), graph) == [place + "%weight is also used by output `weight`"]


def test_loss_weight_counts_targets():
    graph = LossWeight()(decoder_loss(1))
    found = run(graph, parameters(graph), {"tokens": TOKENS, **DOCUMENTS})
    # A document's last entry has no target: 9 - 3 a row.
    assert found["weight"] == 12


def test_microbatches_with_weights_add_up():
    graph = LossHead()(LossWeight()(decoder_loss(1)))
    weights = parameters(graph)
    inputs = {"tokens": TOKENS, "document": np.stack([DOCUMENTS["document"][0], np.arange(9) // 8]),
              "position": np.stack([DOCUMENTS["position"][0], np.arange(9) % 8])}  # fmt: skip
    whole = run(graph, weights, inputs)
    parts = [run(graph, weights, {k: v[i : i + 1] for k, v in inputs.items()}) for i in range(2)]
    total = sum(float(p["loss"] * p["weight"]) for p in parts) / sum(float(p["weight"]) for p in parts)
    np.testing.assert_allclose(total, whole["loss"], rtol=1e-12)
    assert parts[0]["weight"] != parts[1]["weight"]


def test_a_mean_of_losses_has_no_weight():
    d = Decoder(1)
    b = d.root
    targets = b.add(Input("targets", ROWS))
    loss = b.emit(Mul(), b.emit(CrossEntropy(), d.logits, targets), number(b, 2.0))
    graph = b.finish({"loss": loss})
    assert LossWeight()(graph) is graph
    assert "not by one cross-entropy" in told(LossWeight(), graph)[0]


def test_dead_code_drops_inputs_with_a_default_and_keeps_others():
    after = DeadCode()(wasteful())
    assert [v.name for v in after.inputs] == ["x", "y", "w", "v"]
    (node,) = after.nodes
    assert (node.op.carries, node.op.stacks, len(node.inputs)) == (1, 1, 2)


def test_a_carry_that_only_the_next_run_reads_is_kept():
    b = Builder("fibonacci")
    t = TensorType("f32", ())
    x, y = (b.add(Input(n, t)) for n in "xy")
    inner = Builder("step")
    p, q = (inner.add(Argument(n, t)) for n in "pq")
    region = inner.finish({"0": q, "1": inner.emit(Add(), p, q)})
    outs = b.emit(Repeat(5, 2, 0), x, y, region=region)
    graph = b.finish({"f": outs[0]})
    assert DeadCode()(graph) is graph
    assert run(graph, {}, {"x": 0.0, "y": 1.0})["f"] == 5


def test_cse_keeps_the_first_origin():
    b = Builder("g")
    x = b.add(Input("x", HIDDEN))
    b.origin = Origin("first", "a.yaml:1:1")
    one = b.emit(Tanh(), x)
    b.origin = Origin("second", "a.yaml:2:1")
    graph = b.finish({"y": b.emit(Add(), one, b.emit(Tanh(), x))})
    after = CommonSubexpressions()(graph)
    assert [n.origin.path for n in after.nodes] == ["first", "second"]
    assert told(CommonSubexpressions(), graph) == ["cse: fired at second (a.yaml:2:1): same as at first"]


def test_constants_of_two_dtypes_are_two():
    b = Builder("g")
    graph = b.finish({"a": number(b, 1), "b": number(b, 1.0), "c": number(b, 0.0), "d": number(b, -0.0)})
    assert CommonSubexpressions()(graph) is graph


def test_infinite_results_are_not_folded():
    b = Builder("g")
    graph = b.finish({"y": b.emit(Div(), number(b, 1.0), number(b, 0.0))})
    assert FoldConstants()(graph) is graph
    assert Canonicalise()(graph) is graph


def test_unrolled_names_are_logical():
    after = Unroll()(stateful(decoder(2, nested=True)))
    states = [s.path for s in after.states]
    assert states[:3] == ["length", "lm.group[0].layer[0].attend.core.key", "lm.group[0].layer[1].attend.core.key"]
    assert set(states) <= set(after.outputs)
    assert all(s.stacked == 0 and s.type.rank <= 4 for s in after.states)
    paths = [n.origin.path for n in after.nodes if n.op.name == "attend_cached"]
    assert paths == [f"lm.group[{i}].layer[{j}].attend.core" for i in range(2) for j in range(2)]
    assert {p.path for p in after.parameters} == set(parameters(decoder(2, nested=True)))


def test_unrolling_commutes_with_the_step_form():
    one, two = (Unroll()(stateful(decoder(2))), stateful(Unroll()(decoder(2))))
    assert {s.path for s in one.states} == {s.path for s in two.states}
    weights = parameters(one)
    states = zeros(one, {"batch": 2, "capacity": 16})
    found = [run(g, weights, {"tokens": TOKENS}, states) for g in (one, two)]
    for name, array in found[0].items():
        np.testing.assert_allclose(found[1][name], array)


def test_decompose_leaves_only_what_is_kept():
    after = decompose(decoder(2), CORE)
    assert illegal(decoder(2), CORE) and not illegal(after, CORE)
    with pytest.raises(SpecError) as e:
        decompose(decoder(2), CORE - {"linear"})
    assert e.value.diagnostics[0].code == "PF0342"
    assert "`linear`" in e.value.diagnostics[0].message
    assert e.value.diagnostics[0].notes[0].text == "in lm.layer[0:2].attend.query"


@pytest.mark.parametrize("backend", ["reference", "xla", "onnx"])
@pytest.mark.parametrize("form", ["training", "step"])
def test_pipelines_keep_the_meaning(backend, form):
    graph = decoder(2) if form == "step" else decoder_loss(2)
    seen: list[str] = []

    def after(p: Pass, g: Graph) -> None:
        verify(g)
        assert equal(from_text(to_text(g)), g)
        seen.append(p.name)

    best = optimise(graph, backend, form, after=after)
    assert seen == [p.name for p in pipeline(backend, form)]
    plain = stateful(graph) if form == "step" else LossWeight()(graph)
    states = zeros(plain, {"batch": 2, "capacity": 16}) if form == "step" else {}
    weights = parameters(graph)
    want, got = (run(g, weights, {"tokens": TOKENS}, states) for g in (plain, best))
    assert set(want) == set(got)
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-10, atol=1e-12)


def test_passes_for_speed_run_only_where_they_were_measured_to_gain():
    for p, gains in GAINS:
        for backend in ("xla", "onnx"):
            for form in ("training", "step"):
                gain = next((g for g in gains if (g.backend, g.form) == (backend, form)), None)
                assert (p in pipeline(backend, form)) == (gain is not None and gain.low > 1)
                assert gain is None or gain.low <= gain.ratio <= gain.high
    assert {type(p) for p in pipeline("reference", "training")} == {LossWeight}
    assert {type(p) for p in pipeline("reference", "step")} == {Stateful}


def test_explain_tells_of_all_rules():
    lines = [str(e) for e in explain(decoder_loss(2), "xla")]
    assert any(line.startswith("loss_head: ") for line in lines)
    assert any("residual_norm" in line for line in lines)
    with pytest.raises(SpecError):
        explain(decoder_loss(2), "xla", "step")


def test_rules_that_never_rest_are_found():
    swap = Rule("swap", op(Add)(Var("x"), Var("y")), lambda m, b: b.emit(Add(), m.y, m.x))
    b = Builder("g")
    x = b.add(Input("x", HIDDEN))
    graph = b.finish({"y": b.emit(Add(), x, b.emit(Rsqrt(), x))})
    with pytest.raises(AssertionError, match="do not come to rest"):
        apply_rules(graph, (swap,), Trace())
