"""Spec to graph: kinds, paths, sharing, repetition, and what is said of mistakes."""

from __future__ import annotations

import numpy as np
import pytest

from planform.backends.reference import run
from planform.compiler.elaborate import elaborate, elaborate_loss
from planform.compiler.ir import Graph, verify
from planform.compiler.parameters import initial, layers
from planform.compiler.types import TensorType
from planform.spec import Source, SpecError, load_text, parse_body

HEAD = """planform: 1
model: m
dims: {d: 6, n: 5, ff: 4}
"""


def spec_text(body: str, blocks: str = "", extra: str = "", inputs: str = "x: float[batch, d]") -> str:
    lines = "".join(f"      {line}\n" for line in body.splitlines())
    kept = f"blocks:\n{blocks}" if blocks else ""
    return f"{HEAD}{extra}{kept}graphs:\n  g:\n    inputs:\n      {inputs}\n    body: |\n{lines}"


def graph_of(body: str, blocks: str = "", extra: str = "", inputs: str = "x: float[batch, d]") -> Graph:
    graph = elaborate(load_text(spec_text(body, blocks, extra, inputs)))
    verify(graph)
    return graph


def values(graph: Graph, x: np.ndarray, seed: int = 0) -> np.ndarray:
    parameters = {k: v.astype(np.float64) for k, v in initial(graph.parameters, seed).items()}
    return next(iter(run(graph, parameters, {"x": x}).values()))


X = np.random.default_rng(1).normal(size=(3, 6))


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("y = x >> id + id", 2 * X),
        ("y = x >> 2 * id - 1", 2 * X - 1),
        ("y = x >> -id >> relu", np.maximum(-X, 0)),
        ("y = -x * 3 / d", -X / 2),
        ("y = x >> square ^ 2", X**4),
        ("y = x >> id * 2 ^ 3", 8 * X),
        ("y = x >> tanh + id >> square", (np.tanh(X) + X) ** 2),
        ("double = 2 * id\ny = x >> double >> double", 4 * X),
        ("y = x >> (id >> id ^ 0)", X),
        ("y = maximum(x, 0)", np.maximum(X, 0)),
        ("y = x >> minimum(d) >> maximum(-1)", np.maximum(X, -1)),
        ("y = x * sqrt(9) + d // 4", 3 * X + 1),
        ("y = sum(x, batch, d)", X.sum()),
        ("y = x >> sum(batch, d)", X.sum()),
        ("y = x >> sum([batch, d])", X.sum()),
        ("y = mean(x)", X.mean()),
        ("y = mse(x, 2 * x, d)", np.mean(X**2, 1)),
    ],
)
def test_values(body: str, want: np.ndarray) -> None:
    np.testing.assert_allclose(values(graph_of(body), X), want)


def test_pattern_takes_sizes_from_dims() -> None:
    text = spec_text('y = x >> "b (p q) -> b q p"').replace("ff: 4}", "ff: 4, q: 2}")
    got = values(elaborate(load_text(text)), X)
    np.testing.assert_allclose(got, X.reshape(3, 3, 2).transpose(0, 2, 1))


def test_paths_follow_blocks_and_names() -> None:
    graph = graph_of(
        "y = x >> pair >> layer ^ 3 >> tail",
        "  pair: linear(d) >> linear(d)\n"
        '  layer: id + (rms_norm >> linear(d, name="mix"))\n'
        "  tail: linear(ff, bias=true)\n",
    )
    assert sorted(p.path for p in graph.parameters) == [
        "g.layer[0:3].mix.weight",
        "g.layer[0:3].rms_norm.scale",
        "g.pair.linear.weight",
        "g.pair.linear_2.weight",
        "g.tail.linear.bias",
        "g.tail.linear.weight",
    ]


def test_a_name_keeps_neighbours_names() -> None:
    before = graph_of("y = x >> f", '  f: linear(d, name="a") >> linear(d, name="b")\n')
    after = graph_of("y = x >> f", '  f: linear(d, name="a") >> rms_norm >> linear(d, name="b")\n')
    assert {p.path for p in before.parameters} < {p.path for p in after.parameters}


def test_every_use_has_its_own_parameters_and_params_are_shared() -> None:
    graph = graph_of("y = x >> linear(d) >> contract(w, over=[d])", extra="params:\n  w: {shape: [d, ff]}\n")
    assert [p.path for p in graph.parameters] == ["g.linear.weight", "w"]
    twice = graph_of(
        "y = (x >> contract(w, over=[d])) * (x >> contract(w, over=[d]))", extra="params:\n  w: {shape: [d, ff]}\n"
    )
    assert [p.path for p in twice.parameters] == ["w"]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7])
def test_cycle_equals_its_layers_written_out(n: int) -> None:
    blocks = (
        '  a: id + linear(d, name="m")\n  b: id * linear(d, name="m") >> tanh\n  c: linear(d, bias=true, name="m")\n'
    )
    graph = graph_of(f"y = x >> cycle([a, b, c], {n})", blocks)
    order = [("a", "b", "c")[i % 3] for i in range(n)]
    logical = {name for p in graph.parameters for name in layers(p.path)}
    assert {f"g.{kind}[{i}].m.weight" for i, kind in enumerate(order)} <= logical
    parameters = {k: v.astype(np.float64) for k, v in initial(graph.parameters).items()}
    want = X
    for i, kind in enumerate(order):
        w = parameters[f"g.{kind}[{i}].m.weight"]
        want = {"a": want + want @ w, "b": np.tanh(want * (want @ w)), "c": want @ w}[kind]
    np.testing.assert_allclose(run(graph, parameters, {"x": X})["y"], want)
    assert len([m for m in graph.walk() if m.op.name == "repeat"]) == (n >= 6)


def test_nested_repetition() -> None:
    graph = graph_of("y = x >> outer ^ 3", '  inner: id + linear(d, name="m")\n  outer: inner ^ 2 >> tanh\n')
    (p,) = graph.parameters
    assert (p.path, p.stacked, p.type.shape({})) == ("g.outer[0:3].inner[0:2].m.weight", 2, (3, 2, 6, 6))
    parameters = {k: v.astype(np.float64) for k, v in initial(graph.parameters).items()}
    want = X
    for i in range(3):
        for j in range(2):
            want = want + want @ parameters[f"g.outer[{i}].inner[{j}].m.weight"]
        want = np.tanh(want)
    np.testing.assert_allclose(run(graph, parameters, {"x": X})["y"], want)


def test_a_tensor_argument_is_invariant_in_a_repetition() -> None:
    graph = graph_of("z = x >> linear(d)\ny = x >> mix(z) ^ 4", '  mix(z): id + z >> linear(d, name="m")\n')
    parameters = {k: v.astype(np.float64) for k, v in initial(graph.parameters).items()}
    want, z = X, X @ parameters["g.linear.weight"]
    for i in range(4):
        want = (want + z) @ parameters[f"g.mix[{i}].m.weight"]
    np.testing.assert_allclose(run(graph, parameters, {"x": X})["y"], want)


def test_in_is_the_last_dim_where_the_word_is_written() -> None:
    graph = graph_of("y = x >> wide", "  wide: linear(ff) >> back(in)\n  back(to): linear(2 * in) >> linear(to)\n")
    assert [p.type.shape({}) for p in graph.parameters] == [(6, 4), (4, 8), (8, 6)]


GRAPHS = """planform: 1
model: m
dims: {d: 6}
graphs:
  f:
    inputs: {x: "float[batch, d]"}
    body: |
      h = x >> linear(d, name="m")
      y = h >> tanh
    outputs: [y, h]
"""


def test_a_graph_owns_its_parameters() -> None:
    spec = load_text(GRAPHS)
    text = "mean(square(f(f(x).y).h))"
    body = parse_body(Source("loss", text), 0, len(text))
    graph = elaborate_loss(spec, body, {"x": TensorType.parse("f32[batch, d=6]")})
    verify(graph)
    assert [p.path for p in graph.parameters] == ["f.m.weight"]
    parameters = {k: v.astype(np.float64) for k, v in initial(graph.parameters).items()}
    w = parameters["f.m.weight"]
    np.testing.assert_allclose(run(graph, parameters, {"x": X})["loss"], np.mean((np.tanh(X @ w) @ w) ** 2))


@pytest.mark.parametrize(
    ("body", "blocks", "code", "at"),
    [
        ("y = x >> linear(d) + linear(ff)", "", "PF0317", "linear(d) + linear(ff)"),
        ("y = x >> linear(ff) ^ 2", "", "PF0332", "linear(ff) ^ 2"),
        ("y = x >> 3", "", "PF0301", "3"),
        ("y = x >> relu ^ 1.5", "", "PF0305", "1.5"),
        ("y = x >> softcap(id)", "", "PF0303", "id"),
        ("y = x >> linear(d, baas=true)", "", "PF0224", "baas"),
        ("y = x >> relu * (d / 4)", "", "PF0306", "(d / 4)"),
        ("y = x >> relu * (d / (n - 5))", "", "PF0306", "(d / (n - 5))"),
        ("y = x >> f(1, 2)", "  f(a): a * id\n", "PF0302", "2"),
        ("y = x >> f", "  f(a): a * id\n", "PF0302", "f"),
        ("y = x.z", "", "PF0304", "x.z"),
        ("y = d >> relu", "", "PF0301", "d"),
        ("y = x >> attend(id, id, id, scale=1.0)", "", "PF0310", "attend(id, id, id, scale=1.0)"),
        ("y = x >> linear(d ^ 40)", "", "PF0315", "d ^ 40"),
        ("y = cycle(relu, 2)", "", "PF0302", "cycle(relu, 2)"),
        ("y = x >> linear(0)", "", "PF0313", "0"),
        ('y = x >> "b (p q) -> q b p"', "", "PF0316", '"b (p q) -> q b p"'),
    ],
)
def test_mistakes_are_found_at_their_place(body: str, blocks: str, code: str, at: str) -> None:
    text = spec_text(body, blocks)
    with pytest.raises(SpecError) as caught:
        elaborate(load_text(text))
    d = caught.value.diagnostics[0]
    assert (d.code, d.span.text if d.span else None) == (code, at), str(caught.value)


def test_a_mistake_inside_a_block_names_the_path_of_blocks() -> None:
    with pytest.raises(SpecError) as caught:
        graph_of("y = x >> outer", "  inner: linear(ff) + id\n  outer: rms_norm >> inner\n")
    assert any("g > outer > inner" in n.text for n in caught.value.diagnostics[0].notes)


def test_runaway_sizes_are_refused() -> None:
    blocks = "".join(f"  b{i}: b{i + 1} >> b{i + 1}\n" for i in range(24)) + "  b24: relu\n"
    with pytest.raises(SpecError, match="PF0330"):
        graph_of("y = x >> b0", blocks)
