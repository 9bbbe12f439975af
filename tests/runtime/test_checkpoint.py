import json
import logging
import os
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from planform.runtime import checkpoint
from planform.runtime.checkpoint import Checkpoints, read_arrays, read_meta, steps
from planform.runtime.errors import UserError


def state(seed: int) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "params/lm.trunk.layer[3].w": jax.random.normal(keys[0], (8, 6)),
        "params/lm.trunk.layer[3].scale": jax.random.normal(keys[1], (7,), jnp.bfloat16),
        "params/lm.trunk": jax.random.normal(keys[2], (3,)),
        "optimizer/count": jnp.int32(seed),
        "rng": jax.random.key_data(keys[0]),
        "flags": jnp.array([True, False]),
        "nothing": jnp.zeros((0, 4)),
        "special": jnp.array([np.nan, np.inf, -0.0, 1e-45], jnp.float32),
    }


def like(arrays: dict[str, jax.Array]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for name, a in arrays.items()}


def same(a: dict, b: dict) -> bool:
    """Bit for bit, names, dtypes and shapes included."""
    return a.keys() == b.keys() and all(
        np.asarray(a[n]).tobytes() == np.asarray(b[n]).tobytes()
        and (a[n].dtype, a[n].shape) == (b[n].dtype, b[n].shape)
        for n in a
    )


def test_restores_bit_for_bit(tmp_path):
    meta = {"step": 4, "data": {"fingerprint": "ab", "seed": None}, "losses": [0.1, 1e-300]}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None and checkpoints.steps() == []
        checkpoints.save(4, state(4), meta)
        arrays, read = checkpoints.restore(4, like(state(4)))
    assert read == meta == read_meta(tmp_path)
    assert same(arrays, state(4)) and all(isinstance(a, jax.Array) for a in arrays.values())
    assert same(read_arrays(tmp_path), state(4))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4"]


def test_read_arrays_needs_no_lock_and_reads_what_it_is_asked_for(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step), {"step": step}, wait=True)
        some = read_arrays(tmp_path, 1, only=lambda name: name.startswith("params/"))
        assert set(some) == {name for name in state(1) if name.startswith("params/")}
        assert same(some, {name: state(1)[name] for name in some})
        assert all(isinstance(a, np.ndarray) for a in some.values())
        assert some["params/lm.trunk.layer[3].scale"].dtype == ml_dtypes.bfloat16
        assert set(read_arrays(tmp_path, only=lambda name: name == "nothing")) == {"nothing"}
        assert read_meta(tmp_path, 1) == {"step": 1}


def test_64_bits_are_kept_whatever_jax_is_set_to(tmp_path):
    wide = {"f": np.array([1 + 1e-15]), "i": np.array([2**40])}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, wide, {}, wait=True)
    assert same(read_arrays(tmp_path), wide)


def test_a_saved_state_may_be_donated_at_once(tmp_path):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    start = jax.random.normal(jax.random.key(0), (512, 1024))
    expected = np.array(start)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        x = jnp.copy(start)
        for i in range(5):
            checkpoints.save(i, {"x": x}, {})
            for _ in range(3):
                x = step(x)
            x.block_until_ready()
            checkpoints.wait()
            assert read_arrays(tmp_path, i)["x"].tobytes() == expected.tobytes()
            for _ in range(3):
                expected = expected + np.float32(1)


def test_keeps_the_newest(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (5, 30, 7, 100):
            checkpoints.save(step, state(step), {})
            assert len(steps(tmp_path)) <= 3
        checkpoints.wait()
        assert checkpoints.steps() == [30, 100] and checkpoints.latest() == 100
        assert sorted(os.listdir(tmp_path / "checkpoints")) == ["100", "30"]
    assert same(read_arrays(tmp_path, 30), state(30))


def test_a_step_that_is_there_stays_unless_discarded(tmp_path):
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state(step), {})
        checkpoints.save(2, state(99), {})
        checkpoints.wait()
        assert same(read_arrays(tmp_path, 2), state(2))
        checkpoints.discard_after(1)
        assert checkpoints.steps() == [1]
        checkpoints.save(2, state(99), {}, wait=True)
        assert same(read_arrays(tmp_path, 2), state(99))


def test_every_tensor_that_does_not_fit_is_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), {}, wait=True)
        wanted = like(state(1))
        wanted["params/new"] = wanted.pop("params/lm.trunk")
        wanted["flags"] = jax.ShapeDtypeStruct((3,), jnp.bool_, sharding=wanted["flags"].sharding)
        wanted["rng"] = jax.ShapeDtypeStruct((2,), jnp.float32, sharding=wanted["rng"].sharding)
        with pytest.raises(UserError) as error:
            checkpoints.restore(1, wanted)
    message = error.value.message
    assert "it lacks params/new" in message
    assert "the model has no params/lm.trunk;" in message
    assert "flags is bool[2] there and bool[3] in the model" in message
    assert "rng is uint32[2] there and float32[2] in the model" in message


def test_many_names_are_cut_short(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {f"w{i}": jnp.ones(1) for i in range(20)}, {}, wait=True)
        with pytest.raises(UserError, match=r"has no w0, w1, w10, w11, w12 and 15 more"):
            checkpoints.restore(1, {})


def test_two_runs_cannot_share_a_folder(tmp_path):
    with Checkpoints(tmp_path), pytest.raises(UserError, match=f"another run.*process {os.getpid()}"):
        Checkpoints(tmp_path)
    Checkpoints(tmp_path).close()


def test_no_room_on_the_disk(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), {}, wait=True)
        monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage(checkpoint.SPARE + 100))
        with pytest.raises(UserError, match="disk is full: a checkpoint takes .* B, .* left"):
            checkpoints.save(2, state(2), {})
        monkeypatch.undo()
        assert checkpoints.steps() == [1] and same(read_arrays(tmp_path), state(1))


@pytest.mark.parametrize("wait", [True, False])
def test_the_disk_fills_up_during_a_save(tmp_path, monkeypatch, wait, caplog):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1), {}, wait=True)
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(os, "rename", full)
        with pytest.raises(UserError, match="became full while the checkpoint of step 2") as error:
            checkpoints.save(2, state(2), {}, wait=wait)
            checkpoints.wait()
    assert "step 1 is whole" in error.value.help and not caplog.records
    assert os.listdir(tmp_path / "checkpoints") == ["1"]
    checkpoints.save(3, state(3), {})
    checkpoints.close()
    assert steps(tmp_path) == [1, 3] and same(read_arrays(tmp_path), state(3))


def test_a_damaged_checkpoint_is_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step), {}, wait=True)
    for file in (tmp_path / "checkpoints" / "2" / "arrays").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match="step 2 .* can't be read") as error:
        read_arrays(tmp_path)
    assert "step 1" in error.value.help
    (tmp_path / "checkpoints" / "1" / "meta" / "metadata").write_text("no json")
    with pytest.raises(UserError, match="step 1 .* can't be read"):
        read_meta(tmp_path, 1)


def test_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        read_arrays(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state(3), {}, wait=True)
        with pytest.raises(UserError, match="no checkpoint of step 4") as error:
            checkpoints.restore(4, {})
    assert error.value.help == "there are 3"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't write"):
        Checkpoints(tmp_path / "file")


def test_nothing_in_a_checkpoint_is_pickled(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), {"a": 1}, wait=True)
    for file in Path(tmp_path).rglob("*"):
        assert not file.is_file() or b"cnumpy\n" not in file.read_bytes()
    json.loads((tmp_path / "checkpoints" / "1" / "arrays" / "_METADATA").read_text())
