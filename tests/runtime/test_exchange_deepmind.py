"""Orbax folders of flax parameters, as google-deepmind publishes them: in and out, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from planform.compiler.weights import weights_map
from planform.runtime.errors import UserError
from planform.runtime.exchange import export_folder, import_folder, orbax_folder
from planform.runtime.exchange.orbax_folder import OrbaxFolder
from planform.runtime.exporting import export_checkpoint
from planform.runtime.run import parameters_of_run, read_run, spec_of_run
from planform.spec import load

SMALL = ("d=24", "lru=40", "heads=2", "head_dim=12", "intermediate=64", "vocab=50", "layers=3")


def flat(overrides: tuple[str, ...] = SMALL, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Random parameters by their path, as their shapes are."""
    rng = np.random.default_rng(0)
    weights = weights_map(load("recurrentgemma", "small", overrides), "deepmind")
    return {t.name: rng.standard_normal(t.shape).astype(dtype) for t in weights.tensors}


def save(folder: Path, arrays: dict[str, np.ndarray], root: bool = True, **options: Any) -> Path:
    """As their `save_parameters` does."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *above, last = name.split("/")
        place = tree
        for key in above:
            place = place.setdefault(key, {})
        place[last] = jnp.asarray(array)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as writer:
        writer.save(folder, {"params": tree} if root else tree)
    return folder


def bits(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """By Orbax alone."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.restore(folder)

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, dict):
            for key, value in node.items():
                yield from walk(value, f"{path}/{key}")
        else:
            array = np.asarray(node)
            yield path, (str(array.dtype), array.shape, array.tobytes())

    return dict(walk(tree, ""))


def test_round_trip_is_bit_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orbax_folder, "CHUNK", 2000)  # most tensors are written in several pieces
    arrays = flat(dtype=ml_dtypes.bfloat16)
    theirs = save(tmp_path / "theirs", arrays)
    (theirs / "tokenizer.model").write_bytes(b"pieces")
    ours = import_folder(theirs, "recurrentgemma@small", tmp_path / "ours", SMALL)
    assert read_run(ours)["imported"]["format"] == "deepmind"
    # Both halves of their one tensor, and a layout that isn't ours.
    mine = parameters_of_run(ours)
    np.testing.assert_array_equal(mine["lm.layer[1].feed.glu.up.weight"], arrays["blocks.1/mlp_block/ffw_up/w"][1])
    np.testing.assert_array_equal(
        mine["lm.layer[1].feed.glu.gate.bias"], arrays["blocks.1/mlp_block/ffw_up/b"][0, 0, 0]
    )
    query = arrays["blocks.2/attention_block/proj_q/kernel"]
    np.testing.assert_array_equal(mine["lm.layer[2].attend.attention.query.weight"], query.reshape(24, 2, 12))
    back = export_checkpoint(ours, tmp_path / "back", "deepmind")
    assert bits(back) == bits(theirs)
    assert (back / "tokenizer.model").read_bytes() == b"pieces"
    assert {p.name for p in tmp_path.iterdir()} == {"theirs", "ours", "back"}


def test_older_folders(tmp_path: Path) -> None:
    """Without the files that Orbax has come to write since, a file an array, and parameters at the root."""
    arrays = flat()
    older = save(tmp_path / "older", arrays)
    shutil.rmtree(older / "array_metadatas")
    for name in ("_CHECKPOINT_METADATA", "_sharding", "commit_success.txt"):
        (older / name).unlink(missing_ok=True)
    apart = save(tmp_path / "apart", arrays, use_ocdbt=False)
    bare = save(tmp_path / "bare", arrays, root=False)
    for folder in (older, apart, bare):
        found = OrbaxFolder(folder, "params/")
        assert set(found) == set(arrays)
        assert all(np.array_equal(found[name], a) and found.shape(name) == a.shape for name, a in arrays.items())


def test_the_shapes_say_which_size_it_is(tmp_path: Path) -> None:
    text = Path("models/recurrentgemma.yaml").read_text()
    at = text.index("  small:")
    line = text[at : text.index("\n", at) + 1]
    tiny = "{" + ", ".join(o.replace("=", ": ") for o in SMALL) + "}"
    (tmp_path / "mine.yaml").write_text(text.replace(line, f"{line}  tiny: {tiny}\n"))
    theirs = save(tmp_path / "theirs", flat())
    assert spec_of_run(import_folder(theirs, str(tmp_path / "mine.yaml"), tmp_path / "ours")).size == "tiny"
    (tmp_path / "two.yaml").write_text(text.replace(line, f"{line}  near: {tiny[:-1]}, window: 8}}\n  tiny: {tiny}\n"))
    with pytest.raises(UserError, match="fits recurrentgemma@near and recurrentgemma@tiny") as caught:
        import_folder(theirs, str(tmp_path / "two.yaml"), tmp_path / "other")
    assert caught.value.help == "say which it is: --spec recurrentgemma@near"
    named = import_folder(theirs, f"{tmp_path / 'two.yaml'}@near", tmp_path / "other")
    assert spec_of_run(named).size == "near"


def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    arrays = flat()
    del arrays["blocks.2/attention_block/proj_k/kernel"]
    arrays["blocks.0/recurrent_block/conv_1d/w"] = np.zeros((3, 40), np.float32)
    arrays["lora/a"] = np.zeros(3, np.float32)
    theirs = save(tmp_path / "theirs", arrays)
    with pytest.raises(UserError) as caught:
        import_folder(theirs, "recurrentgemma@small", tmp_path / "ours", SMALL)
    for line in (
        "don't fit recurrentgemma@small", "missing: blocks.2/attention_block/proj_k/kernel [24, 12]",
        "wrong shape: blocks.0/recurrent_block/conv_1d/w is [3, 40], expected [4, 40]", "extra: lora/a [3]",
    ):  # fmt: skip
        assert line in str(caught.value)
    with pytest.raises(UserError, match="fit no size of recurrentgemma, the nearest is recurrentgemma@small"):
        import_folder(theirs, "recurrentgemma", tmp_path / "ours")
    assert [p.name for p in tmp_path.iterdir()] == ["theirs"]


def test_pickles_and_other_folders_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "2b.pt").write_bytes(b"x")
    for given in ("torch", "torch/2b.pt"):
        with pytest.raises(UserError, match="2b.pt is a pickle") as caught:
            import_folder(tmp_path / given, "recurrentgemma", tmp_path / "ours")
        assert "safetensors" in str(caught.value.help)
    save(tmp_path / "download" / "2b", flat())
    (tmp_path / "download" / "tokenizer.model").write_bytes(b"pieces")
    with pytest.raises(UserError, match="is no checkpoint folder") as caught:
        import_folder(tmp_path / "download", "recurrentgemma", tmp_path / "ours")
    assert caught.value.help == f"{tmp_path / 'download' / '2b'} is one"
    with pytest.raises(UserError, match="there is no folder"):
        import_folder(tmp_path / "nowhere", "recurrentgemma", tmp_path / "ours")
    # As it is published, the tokenizer stands beside the parameters.
    ours = import_folder(tmp_path / "download" / "2b", "recurrentgemma@small", tmp_path / "ours", SMALL)
    assert (ours / "tokenizer" / "tokenizer.model").read_bytes() == b"pieces"


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", closed)
    with pytest.raises(UserError, match=r"can't read .*: Permission denied"):
        import_folder(tmp_path, "recurrentgemma", tmp_path / "ours")


def test_damage_is_told(tmp_path: Path) -> None:
    theirs = save(tmp_path / "theirs", flat())
    for file in [p for p in theirs.rglob("d/*") if p.is_file()]:
        file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(UserError, match="is damaged"):
        import_folder(theirs, "recurrentgemma@small", tmp_path / "ours", SMALL)
    (theirs / "_METADATA").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        import_folder(theirs, "recurrentgemma@small", tmp_path / "ours", SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["theirs"]


def test_parameters_are_asked_for_in_turn(tmp_path: Path) -> None:
    """Nothing is held that isn't being written: each tensor's parts are asked for together, and once."""
    ours = import_folder(save(tmp_path / "theirs", flat()), "recurrentgemma@small", tmp_path / "ours", SMALL)
    held = parameters_of_run(ours)
    asked: list[str] = []

    class Watched(dict[str, np.ndarray]):
        def __missing__(self, name: str) -> np.ndarray:
            asked.append(name)
            return held[name]

    export_folder(spec_of_run(ours), Watched(), tmp_path / "back", "deepmind")
    assert sorted(asked) == sorted(held)
    up = [i for i, n in enumerate(asked) if n.startswith("lm.layer[1].feed.glu.") and ".down" not in n]
    assert len(up) == 4 and {up[1] - up[0], up[3] - up[2]} == {1}


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = import_folder(save(tmp_path / "theirs", flat()), "recurrentgemma@small", tmp_path / "ours", SMALL)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "finalize", full)
    with pytest.raises(UserError, match=r"can't write .*No space left on device"):
        export_checkpoint(ours, tmp_path / "back", "deepmind")
    assert {p.name for p in tmp_path.iterdir()} == {"theirs", "ours"}
