"""Wrong versions of graphs: legal, of the same types, and each with another meaning."""

from __future__ import annotations

import numpy as np
import pytest

from planform.backends import reference
from planform.compiler.elaborate import elaborate
from planform.compiler.ir import Builder, Graph, Input, verify
from planform.compiler.mistakes import forgotten_states, mistakes
from planform.compiler.ops import OPS, Op
from planform.compiler.passes.stateful import stateful
from planform.compiler.text import to_text
from planform.spec import load


def gemma() -> Graph:
    return elaborate(load("gemma2", "small", ["window=4"]))


@pytest.mark.parametrize("name", sorted(set(OPS) - {"repeat"}))
def test_an_ops_own_mistakes_fit_where_it_stands(name: str) -> None:
    """Same inputs, same type, other numbers: over some random uses each mistake shows in at least one."""
    rng = np.random.default_rng(0)
    shown: dict[str, bool] = {}
    for _ in range(12):
        op, drawn = OPS[name].draw(rng)
        types, arrays = [t for t, _ in drawn], [a for _, a in drawn]
        for mistake, wrong in op.mistakes(*types).items():
            found = []
            for make in (op, wrong):
                b = Builder("g")
                inputs = [b.add(Input(f"x{i}", t)) for i, t in enumerate(types)]
                out = b.emit(make, *inputs) if isinstance(make, Op) else make(b, *inputs)
                graph = b.finish({"y": out})
                verify(graph)
                given = {f"x{i}": a for i, a in enumerate(arrays)}
                found.append((out.type, reference.run(graph, {}, given)["y"]))
            (want, right), (got, other) = found
            assert got == want, mistake
            shown[mistake] = shown.get(mistake, False) or not np.allclose(right, other, rtol=1e-6, atol=1e-9)
    assert all(shown.values()), shown


def test_every_mistake_makes_another_legal_graph() -> None:
    graph = gemma()
    text = to_text(graph)
    found = mistakes(graph)
    assert len({(m.name, m.path) for m in found}) > 50
    for m in found:
        wrong = m.edit(graph)
        verify(wrong)
        assert to_text(wrong) != text, m.name
    assert to_text(graph) == text


def test_states_are_forgotten_one_at_a_time() -> None:
    step = stateful(gemma())
    found = forgotten_states(step)
    assert [m.path for m in found] == [s.path for s in step.states]
    for m in found:
        wrong = m.edit(step)
        assert {k for k, v in wrong.outputs.items() if v is not step.outputs[k]} == {m.path}
