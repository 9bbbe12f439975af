"""Named dims: texts, uniqueness, and broadcasting by name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planform.compiler.size import symbol
from planform.compiler.types import (
    DTYPES,
    Dim,
    TensorType,
    TypeMismatch,
    align,
    alignment,
    broadcast,
    promote,
    scalar,
)

SIZES = {"batch": 2, "time": 3, "d": 4, "heads": 5}
named = st.sampled_from(sorted(SIZES)).map(lambda n: Dim(n, SIZES[n]))
symbolic = st.sampled_from(["batch", "time"]).map(lambda n: Dim(n, symbol(n)))
odd = st.sampled_from([Dim("ff", symbol("d") * 2), Dim(None, symbol("time")), Dim(None, 7), Dim("t", symbol("time"))])
dims = st.lists(st.one_of(named, symbolic, odd), max_size=4, unique_by=lambda d: d.name or id(d)).map(tuple)


@given(st.sampled_from(sorted(DTYPES)), dims)
def test_types_read_back(dtype, dims):
    t = TensorType(dtype, dims)
    assert TensorType.parse(str(t)) == t
    assert all(Dim.parse(str(d)) == d for d in dims)


def test_texts():
    t = TensorType("f32", (Dim("batch", symbol("batch")), Dim("ff", 8), Dim(None, 3), Dim(None, symbol("time"))))
    assert str(t) == "f32[batch, ff=8, 3, (time)]"
    assert str(scalar("i32")) == "i32[]"


def test_a_dim_is_unique_within_a_tensor():
    with pytest.raises(TypeMismatch) as e:
        TensorType("f32", (Dim("d", 2), Dim("d", 2)))
    assert e.value.code == "PF0311" and "`d` occurs twice" in str(e.value)
    assert TensorType("f32", (Dim(None, 2), Dim(None, 2))).rank == 2


@given(
    st.permutations(sorted(SIZES)), st.lists(st.lists(named, max_size=4, unique=True).map(tuple), max_size=2), st.data()
)
def test_broadcasting_is_by_name(order, others, data):
    whole = tuple(Dim(n, SIZES[n]) for n in order)
    types = [TensorType("f32", d) for d in data.draw(st.permutations([whole, *others]))]
    target = broadcast(types)
    assert len(target) == 4
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=t.shape({})) for t in types]
    letters = {n: chr(ord("a") + i) for i, n in enumerate(sorted(SIZES))}
    terms = ["".join(letters[n] for n in t.names) for t in types]
    want = np.einsum(",".join(terms) + "->" + "".join(letters[d.name] for d in target), *arrays)
    got = np.ones(())
    for array, t in zip(arrays, types):
        got = got * align(array, t, target)
    np.testing.assert_allclose(got, want)


def test_the_operand_with_all_dims_gives_the_order():
    x, y = TensorType("f32", (Dim("d", 4),)), TensorType("f32", (Dim("time", 3), Dim("d", 4)))
    assert broadcast([x, y]) == broadcast([y, x]) == y.dims
    turned = TensorType("f32", y.dims[::-1])
    assert broadcast([y, turned]) == y.dims  # the first of equals


def test_outer_sums_are_refused():
    x, y = TensorType("f32", (Dim("heads", 5),)), TensorType("f32", (Dim("time", 3), Dim("d", 4)))
    with pytest.raises(TypeMismatch) as e:
        broadcast([x, y])
    assert e.value.code == "PF0317" and "`heads`" in str(e.value)


def test_unnamed_dims_meet_from_the_last_one_backwards():
    x, y = TensorType("f32", (Dim(None, 3), Dim(None, 4))), TensorType("f32", (Dim(None, 4),))
    assert broadcast([y, x]) == x.dims
    assert alignment(y, x.dims) == ((0,), (0,))
    with pytest.raises(TypeMismatch) as e:
        broadcast([x, TensorType("f32", (Dim(None, 3),))])
    assert e.value.code == "PF0312"


def test_sizes_of_one_name_must_agree():
    with pytest.raises(TypeMismatch) as e:
        broadcast([TensorType("f32", (Dim("d", 4),)), TensorType("f32", (Dim("d", 5),))])
    assert e.value.code == "PF0312" and "4" in str(e.value) and "5" in str(e.value)


def test_types_of_a_bound_graph():
    t = TensorType("i32", (Dim("batch", symbol("batch")), Dim(None, symbol("time") // 2)))
    assert t.shape({"batch": 3, "time": 5}) == (3, 2)
    assert str(t.bind({"time": 8})) == "i32[batch, 4]"
    assert t.without([-1]).dims == t.dims[:1]
    assert str(t.elements) == "((time)//2)*batch"


@given(st.permutations(sorted(DTYPES)))
def test_promotion_has_an_order(order):
    assert promote(order) == "f64"
    assert (
        promote(["bool", "i32"]) == "i32" and promote(["i64", "bf16"]) == "bf16" and promote(["bf16", "f32"]) == "f32"
    )
