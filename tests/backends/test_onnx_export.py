"""The artefact: its files, its bytes, its contract, and what happens to it when it is broken."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from planform.backends.onnx import Fixture, difference, export, intermediates, reference_fixture, verify_contract
from planform.compiler.ir import Graph

from .onnx_models import VOCAB, fused, gemma, step, tokens, weights

CHUNKS = ([20, 3], [1, 1], [2, 9])


def step_graph() -> Graph:
    return fused(step(gemma(), last=True))


def step_fixture() -> Fixture:
    graph = gemma()
    inputs = [{"tokens": tokens(2, max(c), i), "count": np.array(c, np.int32)} for i, c in enumerate(CHUNKS)]
    return reference_fixture(step(graph, last=True), weights(graph), inputs, capacity=48)


def export_step(folder: Path, **options: object) -> Path:
    given = {"metadata": {"spec": "gemma2", "size": "small"}, "max_positions": 64, "fixture": step_fixture(), **options}
    return export(step_graph(), weights(gemma()).__getitem__, folder, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_step(tmp_path_factory.mktemp("made") / "model")


def altered(artefact: Path, folder: Path, name: str, change: object) -> Path:
    """A copy with one file changed and its fingerprint in the contract set right."""
    import hashlib

    folder.mkdir()
    for path in artefact.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / name).write_bytes(change((folder / name).read_bytes()))  # type: ignore[operator]
    contract = json.loads((folder / "contract.json").read_text())
    data = (folder / name).read_bytes()
    contract["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "contract.json").write_text(json.dumps(contract))
    return folder


def test_the_folder_holds_a_checked_model_and_its_contract(artefact: Path) -> None:
    assert {p.name for p in artefact.iterdir()} == {
        "model.onnx", "model.onnx.data", "contract.json", "fixture.npz", "README.txt",
    }  # fmt: skip
    onnx.checker.check_model(str(artefact / "model.onnx"), full_check=True)
    verdict = verify_contract(artefact)
    assert verdict.holds and 0 < verdict.errors["logits"] < 2e-5


def test_the_contract_says_how_to_run_it(artefact: Path) -> None:
    contract = json.loads((artefact / "contract.json").read_text())
    assert contract["format"] == 1 and contract["form"] == "step" and contract["max_positions"] == 64
    assert contract["origin"] == {"size": "small", "spec": "gemma2"}
    assert contract["inputs"] == [
        {"name": "tokens", "dtype": "int32", "shape": ["batch", "time"], "below": VOCAB},
        {"name": "count", "dtype": "int32", "shape": ["batch"]},
    ]
    assert contract["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["batch", 1, VOCAB]}]
    kept = {s["path"]: s for s in contract["states"]}
    key = kept["lm.layer[2].attend.attention.attend.key"]
    assert (key["layout"], key["in_place"], key["initial"], key["shape"]) == (
        "window",
        True,
        "zeros",
        ["batch", 2, 24, 16],
    )
    assert kept["length"]["in_place"] is False
    assert contract["fixture"] == {"file": "fixture.npz", "chunks": 3, "batch": 2, "capacity": 48, "tolerance": 2e-5,
                                   "of": "the float64 reference"}  # fmt: skip


@pytest.mark.parametrize("form", ["step", "sequence"])
def test_the_readme_runs_as_it_stands(form: str, artefact: Path, tmp_path: Path) -> None:
    """In a process that knows onnxruntime and NumPy only."""
    folder = artefact
    if form == "sequence":
        graph = gemma()
        fixture = reference_fixture(graph, weights(graph), [{"tokens": tokens(2, 20)}])
        folder = export(graph, weights(graph).__getitem__, tmp_path / "model", fixture=fixture)
    text = (folder / "README.txt").read_text()
    code = "\n".join(line[4:] for line in text.split("from this folder:")[1].splitlines())
    guard = "import sys\nsys.modules['planform'] = None\n"
    ran = subprocess.run([sys.executable, "-c", guard + code], cwd=folder, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    errors = [float(e) for e in re.findall(r"relative error (\S+)", ran.stdout)]
    assert len(errors) == (3 if form == "step" else 1) and max(errors) < 2e-5


def test_the_same_bytes_in_another_process(artefact: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.backends.test_onnx_export import export_step;"
        "export_step(Path(sys.argv[1]))"
    )
    root = Path(__file__).parents[2]
    path = f"import sys; sys.path[:0] = [{str(root / '.pkg')!r}, {str(root)!r}]; "
    env = {"PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", path + code, str(tmp_path / "again")], check=True, timeout=60, env=env)
    for one in artefact.iterdir():
        assert (tmp_path / "again" / one.name).read_bytes() == one.read_bytes(), one.name


def test_weights_are_read_one_at_a_time_and_stored_once(tmp_path: Path) -> None:
    graph, given = gemma(), weights(gemma())
    asked: list[str] = []
    held: list[weakref.ref[np.ndarray]] = []

    def get(name: str) -> np.ndarray:
        asked.append(name)
        assert sum(r() is not None for r in held) < 3, "at most the parts of one packed weight are in memory"
        array = given[name].copy()
        held.append(weakref.ref(array))
        return array

    export(step_graph(), get, tmp_path / "model")
    assert sorted(asked) == sorted(given), "each weight is asked for once"
    stored = (tmp_path / "model" / "model.onnx.data").stat().st_size
    tables = 2 * 8192 * 8 * 4  # cosines and sines
    assert stored - tables <= sum(a.nbytes for a in given.values()) < 1.01 * (stored - tables) + 2000
    assert len(graph.parameters) == len({p.path for p in graph.parameters})


def test_a_failed_export_leaves_what_was_there(artefact: Path, tmp_path: Path) -> None:
    folder = export_step(tmp_path / "model")
    (folder / "notes.txt").write_text("mine")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    asked: list[str] = []

    def fails(name: str) -> np.ndarray:
        asked.append(name)
        if len(asked) > 5:
            raise OSError(28, "No space left on device")
        return weights(gemma())[name]

    with pytest.raises(OSError, match="No space left"):
        export(step_graph(), fails, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"], "nothing is left beside it"


def test_a_second_export_replaces_the_files_and_keeps_others(tmp_path: Path) -> None:
    folder = export_step(tmp_path / "model")
    (folder / "notes.txt").write_text("mine")
    given = {k: 2 * v for k, v in weights(gemma()).items()}
    export(step_graph(), given.__getitem__, folder, max_positions=64)
    assert (folder / "notes.txt").read_text() == "mine"
    assert not verify_contract(folder).problems
    assert "fixture" not in json.loads((folder / "contract.json").read_text())


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_a_tokenizer_comes_along(name: str, tmp_path: Path) -> None:
    folder = export_step(tmp_path / "model", companions={name: b"{}", "chat_template.jinja": b"hi"})
    assert (folder / name).read_bytes() == b"{}" and (folder / "chat_template.jinja").read_bytes() == b"hi"
    contract = json.loads((folder / "contract.json").read_text())
    assert contract["tokenizer"] == name and "chat_template.jinja" in contract["files"]
    assert verify_contract(folder).holds


def test_files_that_changed_or_are_missing_are_named(artefact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in artefact.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    data = bytearray((folder / "model.onnx.data").read_bytes())
    data[1000] ^= 1
    (folder / "model.onnx.data").write_bytes(data)
    (folder / "fixture.npz").unlink()
    assert verify_contract(folder).problems == [
        "model.onnx.data is not the file that was exported", "fixture.npz is missing",
    ]  # fmt: skip


def _edited(change: object) -> object:
    def apply(data: bytes) -> bytes:
        proto = onnx.load_from_string(data)
        change(proto.graph)  # type: ignore[operator]
        return bytes(proto.SerializeToString())

    return apply


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Those of branches too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from every_node(attribute.g)


def _wider_window(graph: onnx.GraphProto) -> None:
    node = next(n for n in every_node(graph) if n.op_type == "GroupQueryAttention")
    next(a for a in node.attribute if a.name == "local_window_size").i += 1


def _without_cap(graph: onnx.GraphProto) -> None:
    for node in every_node(graph):
        for a in node.attribute:
            if a.name == "softcap":
                a.f = 0.0


def _swapped_layers(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name.endswith("feed.glu.up.weight"):
                node.input[i] = name.replace("[1]", "[x]").replace("[2]", "[1]").replace("[x]", "[2]")


@pytest.mark.parametrize("fault", [_wider_window, _without_cap, _swapped_layers])
def test_a_model_with_another_meaning_is_noticed(fault: object, artefact: Path, tmp_path: Path) -> None:
    folder = altered(artefact, tmp_path / "copy", "model.onnx", _edited(fault))
    verdict = verify_contract(folder)
    assert any("`logits` is off by" in p for p in verdict.problems)


def test_a_model_with_other_names_is_noticed(artefact: Path, tmp_path: Path) -> None:
    def rename(graph: onnx.GraphProto) -> None:
        next(o for o in graph.output if o.name == "logits").name = "scores"
        for node in graph.node:
            node.output[:] = ["scores" if n == "logits" else n for n in node.output]

    folder = altered(artefact, tmp_path / "copy", "model.onnx", _edited(rename))
    assert [p for p in verify_contract(folder).problems if "output `logits` is None" in p]


def test_a_contract_of_another_format_is_refused(artefact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    (folder / "contract.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="has format 99"):
        verify_contract(folder)


def test_intermediate_values_of_a_folder(artefact: Path) -> None:
    """With weights in their own file, and with kernels that leave optional results out."""
    sizes = {"batch": 1, "capacity": 48}
    contract = json.loads((artefact / "contract.json").read_text())
    states = {s["input"]: np.zeros([sizes.get(d, d) for d in s["shape"]], s["dtype"]) for s in contract["states"]}
    ids = tokens(1, 9)
    got = intermediates(artefact, {"tokens": ids, "count": np.array([9], np.int32), **states})
    table = weights(gemma())["table"]
    assert difference(got["lm.embed"], table[ids]) < 1e-6
    assert got["lm.layer[3].attend.attention.attend"].shape == (1, 9, 64)


def test_differences() -> None:
    a = np.ones((2, 3, 4))
    assert difference(a, a) == 0
    assert difference(a, a[:1]) == np.inf
    b = a.copy()
    b[1, 2] = np.nan
    assert difference(b, a) == np.inf
    assert difference(b, a, np.array([3, 2])) == 0
    assert difference(1.5 * a, a) == 0.5
