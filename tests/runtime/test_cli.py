"""The command line: what it prints, its exit codes, and that it starts fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.tiny_run import TINY, tiny_run
from typer.testing import CliRunner

from planform.runtime import errors
from planform.runtime.cli import commands
from planform.runtime.cli.commands import FAULT, app

SETS = [x for o in TINY for x in ("--set", o)]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    path = tmp_path / "wrong.yaml"
    path.write_text(
        "planform: 1\nmodel: m\ngraphs:\n  g:\n    inputs: {x: 'float[batch, 8]'}\n    body: y = x >> reluu\n"
    )
    return path


COMMANDS = [
    "check", "show", "ir", "explain", "train", "eval", "export", "verify", "generate", "schema", "demo",
    "functa encode", "functa decode", "sample", "play", "prepare",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    found = run(*command.split(), "--help")
    assert found.exit_code == 0 and f"Example: planform {command}" in found.output


def test_it_starts_fast() -> None:
    """Commands import what they need when they run: no jax, onnx or numpy for help, no jax for check and show."""
    heavy = "[m for m in ('jax', 'onnx', 'onnxruntime', 'numpy', 'yaml', 'lark') if m in sys.modules]"
    code = f"import sys; import planform.runtime.cli; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    code = """
import sys
from planform.runtime.cli import app
for command in (['check', 'gemma2@2b'], ['show', 'gemma2@27b', '--json'], ['ir', 'gemma2@2b']):
    app(command, standalone_mode=False)
print([m for m in ('jax', 'onnx', 'onnxruntime') if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_an_artefact_writes_without_jax(folder: Path) -> None:
    """Plain onnxruntime: nothing of what trained the model is loaded."""
    run("export", str(folder), "--positions", "256")
    code = f"""
import sys
from planform.runtime.cli import app
app(['generate', {str(folder / "onnx")!r}, '--prompt', 'ab', '--tokens', '3'], standalone_mode=False)
print([m for m in ('jax', 'grain', 'orbax') if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.strip().endswith(b"[]")


def test_check() -> None:
    found = run("check", "gemma2@2b", "gemma2@small", "--mesh", "data=2,tensor=2")
    assert found.exit_code == 0
    assert "✓ gemma2@2b" in found.stdout and "✓ gemma2@small" in found.stdout and "training program" in found.stdout


def test_check_of_wrong_specs(wrong: Path) -> None:
    found = run("check", str(wrong), "gemma2@small")
    assert found.exit_code == 1
    assert "error[PF0220]: unknown name `reluu`" in found.stderr and f"{wrong}:6:20" in found.stderr.replace("\n", "")
    assert "did you mean `relu`?" in found.stderr
    assert "1 error" in found.stdout and "✓ gemma2@small" in found.stdout


def test_check_as_json(wrong: Path) -> None:
    found = run("check", str(wrong), "--json")
    (report,) = json.loads(found.stdout)
    (finding,) = report["findings"]
    assert found.exit_code == 1 and report["ok"] is False
    assert (finding["code"], finding["place"]["line"], finding["place"]["column"]) == ("PF0220", 6, 20)
    (report,) = json.loads(run("check", "gemma2@small", "--json").stdout)
    assert report == {"spec": "gemma2@small", "ok": True, "findings": []}


def test_check_for_a_mesh() -> None:
    found = run("check", "gemma2@small", "--mesh", "tensor=3", "--json")
    codes = {f["code"] for f in json.loads(found.stdout)[0]["findings"]}
    assert found.exit_code == 1 and codes == {"PF0402"}


def test_wrong_usage_is_told() -> None:
    assert run("check", "gemma2@small", "--mesh", "tensor").exit_code == 2
    assert run("check", "--nonsense").exit_code == 2
    assert run("nonsense").exit_code == 2


def test_show_as_json() -> None:
    found = json.loads(run("show", "gemma2@2b", "--json").stdout)
    assert found["parameters"] == {"total": 2_614_341_888, "embedding": 589_824_000, "outside_embedding": 2_024_517_888}
    # Full attention keeps 13 layers of keys and values for ever, the window the same of its 4096 newest entries.
    per_token = 13 * 2 * 4 * 256 * 4
    assert found["state_bytes"] == {"per_token": per_token, "fixed": 4096 * per_token, "at_context": 8192 * per_token}
    assert found["flops_per_token"] > 2 * found["parameters"]["total"]
    (table, *_) = found["blocks"]["blocks"]
    assert (table["path"], table["parameters"]) == ("table", 589_824_000)


def test_show_collapses_equal_layers() -> None:
    text = run("show", "gemma2@2b").stdout
    assert "layer[0:26:2] × 13" in text
    assert "like layer[0:26:2], but attend.attention.attend: window=none" in text
    assert "f32[batch, time, heads=8, head_dim=256]" in text and "2,024,517,888" in text


def test_a_wrong_spec_is_no_traceback(wrong: Path) -> None:
    for command in ("show", "ir", "explain", "train", "verify"):
        found = run(command, str(wrong))
        assert found.exit_code == 1, command
        assert "error[PF0220]" in found.stderr and "Traceback" not in found.output


def test_a_missing_spec() -> None:
    found = run("show", "nothing-of-this-name")
    assert found.exit_code == 1 and "error[PF0601]" in found.stderr


def test_ir() -> None:
    whole = run("ir", "gemma2@small").stdout
    assert whole.startswith("graph lm(stream=time)") and "repeat(count=2" in whole
    step = run("ir", "gemma2@small", "--form", "step", "--backend", "onnx", "--after", "stateful").stdout
    assert "attend_cached" in step and "state(" in step
    loss = run("ir", "gemma2@small", "--graph", "train").stdout
    assert "cross_entropy" in loss
    found = run("ir", "gemma2@small", "--after", "nonsense")
    assert found.exit_code == 2 and "dead_code" in found.stderr
    assert run("ir", "gemma2@small", "--graph", "nonsense").exit_code == 2


def test_explain_for_a_fixed_resolution() -> None:
    asked = ("explain", "spatial_functa@small", "--graph", "field", "--backend", "onnx", "--form", "training", "--json")
    assert "known" not in {e["rule"] for e in json.loads(run(*asked).stdout)}
    rules = {e["rule"] for e in json.loads(run(*asked, "--fix", "coords=8x8").stdout) if e["outcome"] == "fired"}
    assert {"known", "map_first"} <= rules
    for wrong in ("coords", "coords=8x", "coords=there.npz", "coords=8", "place=8x8"):
        assert run(*asked, "--fix", wrong).exit_code == 2


def test_explain() -> None:
    found = run("explain", "gemma2@small", "--backend", "onnx")
    assert found.exit_code == 0 and "onnx, step form" in found.stdout and "models/gemma2.yaml:" in found.stdout
    entries = json.loads(run("explain", "gemma2@small", "--json").stdout)
    assert {e["form"] for e in entries} == {"training", "step"} and all(e["outcome"] for e in entries)


def test_schema(tmp_path: Path) -> None:
    printed = json.loads(run("schema").stdout)
    assert "graphs" in printed["properties"]
    file = tmp_path / "schema.json"
    assert run("schema", "--out", str(file)).exit_code == 0
    assert json.loads(file.read_text()) == printed
    assert run("schema", "--out", str(tmp_path / "no" / "where.json")).exit_code == 2


def test_export_verify_and_generate(folder: Path) -> None:
    made = run("export", str(folder), "--positions", "256", "--json")
    assert made.exit_code == 0 and json.loads(made.stdout)["form"] == "step"
    artefact = folder / "onnx"
    alone = json.loads(run("verify", str(artefact), "--json").stdout)
    assert alone["problems"] == [] and alone["errors"]["logits"] < 2e-5
    both = run("verify", str(folder), "--onnx", str(artefact), "--backend", "onnx", "--json")
    report = json.loads(both.stdout)
    assert both.exit_code == 0 and report["ok"]
    assert {a["backend"] for a in report["agreements"]} == {"onnx", "artefact"}
    written = run("generate", str(artefact), "--prompt", "abc", "--tokens", "5", "--temperature", "0")
    assert written.exit_code == 0 and written.stdout.startswith("abc") and "5 tokens by onnxruntime" in written.stderr
    assert run("generate", str(artefact), "--prompt", "").exit_code == 2


def test_a_prepared_folder_is_checked_and_used(folder: Path, tmp_path: Path) -> None:
    artefact = tmp_path / "onnx"
    run("export", str(folder), "--out", str(artefact), "--positions", "256", "--quantize", "int4", "--budget", "9")
    plain = run("generate", str(artefact), "--prompt", "abc", "--tokens", "20", "--temperature", "0")
    told = json.loads(run("prepare", str(artefact), "--json").stdout)
    assert told["bytes"] == sum(p.stat().st_size for p in artefact.glob("prepared.*"))
    assert run("verify", str(artefact)).exit_code == 0
    again = run("generate", str(artefact), "--prompt", "abc", "--tokens", "20", "--temperature", "0")
    assert again.stdout == plain.stdout
    data = artefact / "prepared.onnx.data"
    times = data.stat().st_atime_ns, data.stat().st_mtime_ns
    data.write_bytes(bytes(data.stat().st_size))
    os.utime(data, ns=times)  # as far as the stamp tells it is the same file
    assert run("verify", str(artefact)).exit_code == 1
    assert "loads in" in run("prepare", str(artefact)).stdout and run("verify", str(artefact)).exit_code == 0


def test_what_is_laid_out_wrongly_is_not_kept(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from planform.backends.onnx import prepared, session

    artefact, write = tmp_path / "onnx", prepared.write

    def wrong(folder: Path, *rest: Any) -> int:
        size = write(folder, *rest)
        data = folder / prepared.DATA
        data.write_bytes(bytes(data.stat().st_size))
        (folder / prepared.STAMP).write_text(json.dumps(prepared.stamp(folder)))
        return size

    monkeypatch.setattr(session, "write", wrong)
    run("export", str(folder), "--out", str(artefact), "--positions", "256")
    found = run("prepare", str(artefact))
    assert found.exit_code == 2 and "planform verify" in found.stderr
    assert not list(artefact.glob("prepared*")) and run("verify", str(artefact)).exit_code == 0


def test_prepare_refuses_what_is_damaged_or_no_artefact(folder: Path, tmp_path: Path) -> None:
    found = run("prepare", str(tmp_path))
    assert found.exit_code == 2 and "is no folder that planform export made" in found.stderr
    artefact = tmp_path / "onnx"
    run("export", str(folder), "--out", str(artefact), "--positions", "256")
    with open(artefact / "model.onnx.data", "r+b") as weights:
        weights.write(b"damage")
    found = run("prepare", str(artefact))
    assert found.exit_code == 2 and "is not the file that was exported" in found.stderr
    assert not list(artefact.glob("prepared*"))
    run("export", str(folder), "--out", str(artefact), "--positions", "256")
    (artefact / "prepared.onnx").mkdir()
    found = run("prepare", str(artefact))
    assert found.exit_code == 2 and "prepared.onnx: Is a directory" in found.stderr


def test_verify_names_what_is_damaged(folder: Path, tmp_path: Path) -> None:
    run("export", str(folder), "--out", str(tmp_path / "onnx"), "--positions", "256")
    weights = tmp_path / "onnx" / "model.onnx.data"
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 64
    weights.write_bytes(damaged)
    found = run("verify", str(tmp_path / "onnx"))
    assert found.exit_code == 1 and "model.onnx.data is not the file that was exported" in found.stdout


def test_verify_of_a_spec_prints_a_line_a_form() -> None:
    found = run("verify", "gemma2@small", *SETS, "--backend", "onnx")
    assert found.exit_code == 0 and found.stdout.count("✓") == 4 and "window 8" in found.stdout


def test_verify_shows_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A divergence is shown like an error in the spec, at the line of the first value that differs."""
    from tests.runtime.mutations import mutations

    from planform.runtime import verify

    def wrong(graph: Any, weights: Any, **options: Any) -> Any:
        return right(graph, weights, **{**options, "edits": {"onnx": mutations(graph)["window dropped"].edit}})

    right = verify.verify
    monkeypatch.setattr(verify, "verify", wrong)
    found = run("verify", "gemma2@small", *SETS, "--backend", "onnx")
    assert found.exit_code == 1
    assert "onnx differs from the reference" in found.stdout and "--> models/gemma2.yaml:18:25" in found.stdout
    assert "first at `lm.layer[0].attend.attention.attend`" in found.stdout.replace("\n", " ")


def test_verify_mutate_tells_how_many_were_caught() -> None:
    found = run("verify", "gemma2@small", *SETS, "--backend", "onnx", "--mutate")
    assert found.exit_code == 0 and "✓ all" in found.stdout and "window one longer" in found.stdout
    missed = run("verify", "gemma2@small", *SETS, "--backend", "onnx", "--mutate", "--tolerance", "0.5", "--json")
    told = json.loads(missed.stdout)
    assert missed.exit_code == 1 and not told["ok"] and 0 < told["caught"] < told["of"] == len(told["trials"])


def test_verify_refuses_what_is_too_large() -> None:
    found = run("verify", "gemma2@2b")
    assert found.exit_code == 2 and "too much for the float64 reference" in found.stderr


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    for command in (["eval"], ["export"], ["verify"], ["generate", "--prompt", "x"]):
        found = run(command[0], str(tmp_path), *command[1:])
        assert found.exit_code == 2, command
        assert "error: " in found.stderr and "= help: " in found.stderr


def test_faults_of_ours_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("planform.spec.json_schema", broken)
    monkeypatch.delenv(commands.DEBUG, raising=False)
    found = run("schema")
    assert found.exit_code == FAULT == 70
    assert "this is a fault of planform" in found.stderr and "Traceback" not in found.stderr
    monkeypatch.setenv(commands.DEBUG, "1")
    assert "Traceback" in run("schema").stderr


def test_interruption_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("planform.spec.json_schema", interrupted)
    found = run("schema")
    assert (found.exit_code, found.stderr.strip()) == (130, "stopped")


def test_users_mistakes_exit_with_two() -> None:
    assert commands.explain_exception(errors.UserError("no")) == 2
