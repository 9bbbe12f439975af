"""The folder for onnxruntime-genai: its own generator gives our logits and tokens, and ours runs the same folder."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from planform.backends import reference
from planform.backends.onnx import (
    CannotLower,
    Generation,
    Quantization,
    Scheme,
    Session,
    export,
    reference_fixture,
    verify_contract,
)
from planform.runtime.cli import app

from .onnx_models import VOCAB, WINDOW, fused, gemma, griffin, step, tokens, weights

og = pytest.importorskip("onnxruntime_genai")

PROMPT, NEW = 2 * WINDOW + 5, 24  # the window's cache is moved in the prompt, and again while generating


def parameters(graph: Any) -> dict[str, np.ndarray]:
    """Those of `weights`, with a table so small that the layers decide what is written, not the last token."""
    found = weights(graph, 3)
    return {**found, "table": found["table"] / 10}


def made(folder: Path, graph: Any = None, **options: Any) -> Path:
    graph = graph or gemma()
    given = {"max_positions": 64, "genai": Generation(), **options}
    return export(fused(step(graph, last=True)), parameters(graph).__getitem__, folder, **given)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chunks = ([PROMPT, 3], [1, 1], [2, 9])
    inputs = [{"tokens": tokens(2, max(c), i), "count": np.array(c, np.int32)} for i, c in enumerate(chunks)]
    fixture = reference_fixture(step(gemma(), last=True), parameters(gemma()), inputs, capacity=48)
    return made(tmp_path_factory.mktemp("made") / "model", fixture=fixture)


def logits(prompt: Any, graph: Any = None) -> np.ndarray:
    """The reference's, [batch, time, vocab]."""
    graph = graph or gemma()
    return reference.run(graph, parameters(graph), {"tokens": np.asarray(prompt)})["logits"]


def greedy(prompt: list[int], new: int, graph: Any = None) -> list[int]:
    found = list(prompt)
    for _ in range(new):
        found.append(int(logits([found], graph)[0, -1].argmax()))
    return found


def generator(folder: Path, rows: int = 1, **search: Any) -> Any:
    model = og.Model(str(folder))
    settings = og.GeneratorParams(model)
    settings.set_search_options(**{"max_length": PROMPT + NEW, "batch_size": rows, **search})
    return og.Generator(model, settings)


def generated(g: Any, rows: int = 1) -> list[list[int]]:
    while not g.is_done():
        g.generate_next_token()
    return [[int(t) for t in g.get_sequence(i)] for i in range(rows)]


def test_three_generators_write_the_same(folder: Path) -> None:
    prompt = tokens(1, PROMPT, 1)[0]
    want = greedy(list(prompt), NEW)
    assert len(set(want[PROMPT:])) > NEW // 4
    g = generator(folder)
    g.append_tokens(prompt)
    assert generated(g) == [want]
    session = Session(folder)
    session.reset(1, PROMPT + NEW)
    found = [int(session.prefill(prompt[None], chunk=7).argmax())]
    while len(found) < NEW:
        found.append(int(session.advance(np.array([[found[-1]]])).argmax()))
    assert found == want[PROMPT:]


def test_logits_after_each_chunk_are_those_of_the_last_entry(folder: Path) -> None:
    text = tokens(1, 40, 2)
    want = logits(text)[0]
    g = generator(folder)
    for start, stop in ((0, 13), (13, 14), (14, 15), (15, 35), (35, 36)):
        g.append_tokens(text[0, start:stop])
        got = g.get_logits()
        assert got.shape == (1, 1, VOCAB)
        np.testing.assert_allclose(got[0, 0], want[stop - 1], atol=1e-4)


@pytest.mark.parametrize("rows, search", [(2, {}), (1, {"chunk_size": 7})], ids=["two rows", "prompt in chunks"])
def test_other_ways_to_generate(folder: Path, rows: int, search: dict[str, int]) -> None:
    prompts = tokens(rows, PROMPT, 4)
    g = generator(folder, rows, **search)
    g.append_tokens(prompts if rows > 1 else prompts[0])
    assert generated(g, rows) == [greedy(list(p), NEW) for p in prompts]


def test_the_contract_holds_and_padded_rows_run(folder: Path) -> None:
    verdict = verify_contract(folder)
    assert verdict.holds and 0 < verdict.errors["logits"] < 2e-5
    contract = json.loads((folder / "contract.json").read_text())
    assert [i["name"] for i in contract["inputs"]] == ["input_ids", "attention_mask"]
    assert {s["input"]: s["output"] for s in contract["states"]} == {
        f"past_key_values.{n}.{kind}": f"present.{n}.{kind}" for n in range(4) for kind in ("key", "value")
    }
    session = Session(folder)
    session.reset(2, 40)
    text = tokens(2, 20)
    got = session.step({"tokens": text}, np.array([20, 6]))["logits"][:, 0]
    want = logits(text)[[0, 1], [19, 5]]
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_quantised_weights_and_caches(tmp_path: Path) -> None:
    graph = fused(step(gemma(), last=True))
    scales = {
        f"lm.layer[{n}].attend.attention.attend.{kind}": np.full((2, 16), 0.05, np.float32)
        for n in range(4)
        for kind in ("key", "value")
    }
    how = Quantization(Scheme("int4", 16), cache=scales, least=0)
    folder = export(
        graph, parameters(gemma()).__getitem__, tmp_path / "m", max_positions=64, genai=Generation(), quantization=how
    )
    text = tokens(1, 40, 2)
    g, session = generator(folder), Session(folder)
    session.reset(1, PROMPT + NEW)
    assert {a.dtype.name for a in session.caches().values()} == {"int8"}
    for start, stop in ((0, 21), (21, 22), (22, 35)):
        g.append_tokens(text[0, start:stop])
        want = session.advance(text[:, start:stop])
        np.testing.assert_allclose(g.get_logits(), want, atol=1e-5)
    assert np.abs(want[0, 0] - logits(text[:, :35])[0, -1]).max() > 1e-3  # it is quantised


def test_the_configuration(tmp_path: Path) -> None:
    ids = Generation.of({"eos_token_id": [1, 7], "bos_token_id": 2})
    config = json.loads((made(tmp_path / "m", genai=ids) / "genai_config.json").read_text())
    model, decoder = config["model"], config["model"]["decoder"]
    assert (model["eos_token_id"], model["bos_token_id"]) == ([1, 7], 2) and "pad_token_id" not in model
    assert (model["vocab_size"], model["context_length"]) == (VOCAB, 64)
    assert decoder["sliding_window"]["layers"] == [0, 2] and decoder["sliding_window"]["window_size"] == WINDOW
    sizes = ("num_attention_heads", "num_key_value_heads", "head_size", "num_hidden_layers")
    assert [decoder[k] for k in sizes] == [4, 2, 16, 4]
    assert config["search"]["past_present_share_buffer"] is True


def test_a_text_ends_with_any_eos(tmp_path: Path) -> None:
    prompt = tokens(1, PROMPT, 1)[0]
    after = greedy(list(prompt), NEW)[PROMPT:]
    end = after[NEW // 2]
    g = generator(made(tmp_path / "m", genai=Generation(eos=(VOCAB - 1, end))))
    g.append_tokens(prompt)
    assert generated(g)[0][PROMPT:] == after[: after.index(end)]


def test_a_window_longer_than_any_stream_needs_no_section(tmp_path: Path) -> None:
    made(tmp_path / "m", max_positions=WINDOW, genai=Generation())
    assert "sliding_window" not in json.loads((tmp_path / "m" / "genai_config.json").read_text())["model"]["decoder"]


def test_the_readme_runs(folder: Path) -> None:
    text = (folder / "README.txt").read_text()
    code = textwrap.dedent("\n".join(line for line in text.splitlines() if line.startswith("    ")))
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(greedy([1, 2, 3], 5))


def test_a_checkpoint_through_the_command(tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, intermediate_size=48, sliding_window=WINDOW, query_pre_attn_scalar=16, eos_token_id=[1, 9],
        attn_implementation="eager",
    )  # fmt: skip
    model = transformers.Gemma2ForCausalLM(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    model.save_pretrained(tmp_path / "theirs")
    run, out = tmp_path / "run", tmp_path / "genai"
    for arguments in (
        ["import", str(tmp_path / "theirs"), "--spec", "gemma2", "--out", str(run)],
        ["export", str(run), "--to", "genai", "--out", str(out), "--positions", "64"],
        ["export", str(run), "--to", "genai", "--out", str(out), "--positions", "48"],  # over the one that is there
    ):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
    told = json.loads((out / "genai_config.json").read_text())["model"]
    assert told["eos_token_id"] == [1, 9] and told["context_length"] == 48
    text = tokens(1, PROMPT)
    g = generator(out)
    g.append_tokens(text[0])
    with torch.no_grad():
        want = model(input_ids=torch.tensor(text), use_cache=False).logits[0, -1].numpy()
    np.testing.assert_allclose(g.get_logits()[0, 0], want, atol=1e-4)


def test_what_it_cannot_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotLower, match="step form"):
        export(gemma(), weights(gemma()).__getitem__, tmp_path / "whole", genai=Generation())
    narrow = gemma(head_dim=12)  # not for the fused kernel: its cache is the reference's ring
    with pytest.raises(CannotLower, match=r"no place for the state `lm\.layer\[0\]"):
        made(tmp_path / "ring", narrow)
    assert not list(tmp_path.iterdir())


# -- recurrent models --------------------------------------------------------------------------------------------

GRIFFIN, HAWK = {"layers": 5}, {"layers": 2}  # with a layer of attention among recurrent ones, and without any


@pytest.mark.parametrize("dims", [GRIFFIN, HAWK], ids=["with attention", "without"])
@pytest.mark.parametrize("rows, search", [(1, {}), (2, {}), (1, {"chunk_size": 7})])
def test_recurrent_states_go_from_step_to_step(
    tmp_path: Path, dims: dict[str, int], rows: int, search: dict[str, Any]
) -> None:
    """Their generator, ours and the reference write the same, and give the same logits after each chunk."""
    graph = griffin(**dims)
    prompts = tokens(rows, PROMPT, 4)
    want = [greedy([int(t) for t in p], NEW, graph) for p in prompts]
    assert len({*want[0][PROMPT:]}) > NEW // 4
    never = next(i for i in range(VOCAB) if i not in np.array(want))
    folder = made(tmp_path / "model", graph, genai=Generation(eos=(never,)))
    g = generator(folder, rows, **search)
    g.append_tokens(prompts if rows > 1 else prompts[0])
    assert generated(g, rows) == want
    session, text = Session(folder), np.array(want)
    session.reset(rows)
    g = generator(folder, rows)
    for start, stop in ((0, 13), (13, 14), (14, 15), (15, 35), (35, 36)) if rows == 1 else ((0, 13),):
        g.append_tokens(text[:, start:stop] if rows > 1 else text[0, start:stop])
        ours = session.advance(text[:, start:stop])
        np.testing.assert_allclose(g.get_logits(), ours, atol=1e-6)
        np.testing.assert_allclose(ours[:, 0], logits(text, graph)[:, stop - 1], atol=1e-4)


def test_the_contract_of_a_recurrent_model_holds(tmp_path: Path) -> None:
    graph = griffin()
    inputs = [{"tokens": tokens(2, max(c), i), "count": np.array(c, np.int32)} for i, c in enumerate(([20, 3], [1, 9]))]
    fixture = reference_fixture(step(graph, last=True), parameters(graph), inputs)
    folder = made(tmp_path / "model", graph, fixture=fixture)
    verdict = verify_contract(folder)
    assert verdict.holds and 0 < verdict.errors["logits"] < 2e-5
    kinds = {0: 1, 1: 1, 2: 0, 3: 1, 4: 1}
    names = {1: ("conv_state", "recurrent_state"), 0: ("key", "value")}
    states = json.loads((folder / "contract.json").read_text())["states"]
    assert {s["input"]: s["output"] for s in states} == {
        f"past_key_values.{n}.{kind}": f"present.{n}.{kind}" for n, r in kinds.items() for kind in names[r]
    }
