"""The same global batch gives the same training, however it is split."""

import numpy as np
import pytest
from tests.runtime.training import corpus, finish, start

SPLIT = ["data=2,fsdp=2", "data=2,tensor=2"]
ALL = ["data=1", "data=2", "data=4", "fsdp=4", "tensor=2", *SPLIT]


def train(folder, meshes, **job):
    corpus(folder / "text")
    return finish(start({"folder": str(folder), "meshes": meshes, "overrides": ["layers=2"], **job}, 4))


def difference(a, b):
    """Relative, of two curves."""
    a, b = np.array(a["losses"]), np.array(b["losses"])
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replicas")
    return train(folder, ["data=1", *SPLIT], steps=5)


def test_losses_do_not_depend_on_the_mesh(runs):
    assert len(runs["data=1"]["losses"]) == 5
    assert runs["data=1"]["losses"][-1] < runs["data=1"]["losses"][0] - 0.1
    for mesh in SPLIT:
        assert difference(runs[mesh], runs["data=1"]) < 1e-5


def test_optimizer_state_is_split_as_the_parameters_are(runs):
    alone = runs["data=1"]["optimizer_bytes"]["after"]["0"]
    counters = 8
    split = runs["data=2,fsdp=2"]["optimizer_bytes"]
    assert split["before"] == split["after"]
    assert set(split["after"].values()) == {(alone - counters) // 2 + counters}
    # Norms have no dim along `tensor`; all else is halved.
    split = runs["data=2,tensor=2"]["optimizer_bytes"]
    assert len(split["after"]) == 4 and all(n < 0.52 * alone for n in split["after"].values())
    assert split["before"] == split["after"]


def test_parameters_are_split(runs):
    alone = runs["data=1"]["parameter_bytes"]["0"]
    assert set(runs["data=2,fsdp=2"]["parameter_bytes"].values()) == {alone // 2}


def test_another_batch_is_noticed(tmp_path, runs):
    other = train(tmp_path, ["data=1"], steps=5, seed=1)
    assert difference(other["data=1"], runs["data=1"]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("compute, tolerance", [("f32", 1e-5), ("f64", 1e-12)])
def test_every_mesh(tmp_path, compute, tolerance):
    found = train(tmp_path, ALL, steps=8, compute=compute, accumulate=2)
    for mesh in ALL[1:]:
        assert difference(found[mesh], found["data=1"]) < tolerance, mesh
