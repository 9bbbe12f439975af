"""Repetition: what the region takes and gives, and that it means a loop."""

from __future__ import annotations

import numpy as np
import pytest

from planform.backends.reference import run
from planform.compiler.ir import (
    Argument,
    Builder,
    Graph,
    Init,
    Input,
    Parameter,
    Value,
    bind,
    copy,
    stacked_dim,
    verify,
)
from planform.compiler.ops.control import Repeat
from planform.compiler.ops.elementwise import Add, Cast, Mul, Tanh
from planform.compiler.parameters import gather, layers, logical, scatter, stack_shape
from planform.compiler.size import symbol
from planform.compiler.text import equal, to_text
from planform.compiler.types import Dim, TensorType

T = TensorType("f32", (Dim("batch", symbol("batch")), Dim("d", 3)))
W = TensorType("f32", (Dim("d", 3),))


def region(*types: TensorType) -> tuple[Builder, list[Value]]:
    b = Builder("layer")
    return b, [b.add(Argument(f"a{i}", t)) for i, t in enumerate(types)]


def recurrence(count: int = 4) -> Graph:
    """h <- tanh(h * w_i + x), s <- s + h; every h comes out too."""
    b = Builder("g")
    h, s, x = (b.add(Input(n, T)) for n in "hsx")
    w = b.add(
        Parameter("w", W.with_dims((stacked_dim(count), *W.dims)), path=f"l[0:{count}].w", init=Init("ones"), stacked=1)
    )
    inner, (hi, si, wi, xi) = region(T, T, W, T)
    new = inner.emit(Tanh(), inner.emit(Add(), inner.emit(Mul(), hi, wi), xi))
    body = inner.finish({"0": new, "1": inner.emit(Add(), si, new), "2": new})
    outs = b.emit(Repeat(count, 2, 1), h, s, w, x, region=body)
    return b.finish({"h": outs[0], "s": outs[1], "all": outs[2]})


def test_it_means_a_loop():
    graph = recurrence()
    verify(graph)
    rng = np.random.default_rng(0)
    h, s, x = (rng.normal(size=(2, 3)) for _ in range(3))
    weights = {f"l[{i}].w": rng.normal(size=3) for i in range(4)}
    found = run(graph, weights, {"h": h, "s": s, "x": x})
    every = []
    for i in range(4):
        h = np.tanh(h * weights[f"l[{i}].w"] + x)
        s = s + h
        every.append(h)
    np.testing.assert_allclose(found["h"], h)
    np.testing.assert_allclose(found["s"], s)
    np.testing.assert_allclose(found["all"], every)


def test_types_of_the_results():
    graph = recurrence()
    assert [str(v.type) for v in graph.outputs.values()] == ["f32[batch, d=3]", "f32[batch, d=3]", "f32[4, batch, d=3]"]


def test_a_watcher_sees_every_run():
    seen = []
    graph = recurrence()
    run(graph, {f"l[{i}].w": np.ones(3) for i in range(4)}, {n: np.ones((2, 3)) for n in "hsx"},
        watch=lambda v, index, array: seen.append((v.name, index)))  # fmt: skip
    assert [i for name, i in seen if name == "tanh"] == [(0,), (1,), (2,), (3,)]


@pytest.mark.parametrize(
    ("carries", "stacks", "types", "message"),
    [
        (1, 1, (T, W), "is no stack of 2"),  # the second input is no stack of 2
        (1, 0, (W,), "takes other types"),
        (2, 0, (T, T), "takes other types"),
    ],
)
def test_regions_and_inputs_must_fit(carries, stacks, types, message):
    b = Builder("g")
    x = b.add(Input("x", T))
    w = b.add(Input("w", W.with_dims((Dim(None, 3), *W.dims))))
    inner, arguments = region(*types)
    body = inner.finish({str(i): a for i, a in enumerate(arguments[:carries])})
    with pytest.raises(AssertionError, match=message):
        b.emit(Repeat(2, carries, stacks), x, w, region=body)


def test_a_carry_keeps_its_type():
    b = Builder("g")
    x = b.add(Input("x", T))
    inner, (a,) = region(T)
    with pytest.raises(AssertionError, match="changes a carry's type"):
        b.emit(Repeat(2, 1, 0), x, region=inner.finish({"0": inner.emit(Cast("f64"), a)}))


def test_verify_looks_into_regions():
    graph = copy(recurrence())
    body = graph.nodes[0].region
    assert body is not None
    body.nodes[0].outputs[0].type = W
    with pytest.raises(AssertionError):
        verify(graph)


def test_copies_share_nothing():
    graph = recurrence()
    other = copy(graph)
    assert equal(graph, other)
    other.nodes[0].region.nodes[0].outputs[0].name = "changed"  # type: ignore[union-attr]
    assert "changed" not in to_text(graph)


def test_bind_reaches_into_regions():
    bound = bind(recurrence(), {"batch": 7})
    verify(bound)
    assert "batch=7" in to_text(bound) and "[batch," not in to_text(bound)


def test_names_of_stacks():
    path = "lm.group[0:2].layer[1:6:2].w"
    assert stack_shape(path) == (2, 3)
    assert layers(path)[:4] == [f"lm.group[0].layer[{i}].w" for i in (1, 3, 5)] + ["lm.group[1].layer[1].w"]
    assert [logical(path, (i, j)) for i in range(2) for j in range(3)] == layers(path)
    assert logical("lm.layer[0:4].w", (7, 2)) == "lm.layer[2].w"
    assert logical(path, (1,)) == "lm.group[1].layer[1:6:2].w"
    arrays = {name: np.full(2, i) for i, name in enumerate(layers(path))}
    stacked = gather(path, arrays.__getitem__)
    assert stacked.shape == (2, 3, 2)
    np.testing.assert_equal(scatter({path: stacked}), arrays)
