"""`planform generate`: what it prints, what it refuses, and a checkpoint that chats after import and export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.chat_folder import json_folder, pieces_folder
from tests.runtime.tiny_run import tiny_run
from typer.testing import CliRunner

from planform.runtime.cli import generate as command
from planform.runtime.cli.commands import app
from planform.runtime.data import load_tokenizer
from planform.runtime.generation.model import open_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def planform(*arguments: object, input: str | None = None) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments], input=input)


def generate(*arguments: object, input: str | None = None) -> Any:
    return planform("generate", *arguments, input=input)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tiny_run(tmp_path_factory.mktemp("runs") / "tiny")
    assert planform("export", run, "--positions", 256).exit_code == 0
    return run / "onnx"


def test_one_text_is_printed_behind_its_prompt(folder: Path) -> None:
    found = generate(folder, "--prompt", "hello", "--tokens", 12, "--temperature", 0)
    alone = generate(folder, "--prompt", "hello", "--tokens", 12, "--temperature", 0, "--quiet")
    assert found.exit_code == 0 and found.stdout == "hello" + alone.stdout
    assert "12 tokens by onnxruntime" in found.stderr and not alone.stderr


def test_several_texts_are_printed_as_each_is_done(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("from a file")
    prompts = ["--prompt", "hello", "--prompt", "a", "--prompt-file", tmp_path / "prompt.txt", "--prompt-file", "-"]
    options = ["--tokens", 9, "--temperature", 0]
    found = json.loads(generate(folder, *prompts, *options, "--json", input="from the input").stdout)
    assert [t["prompt"] for t in found["texts"]] == ["hello", "a", "from a file", "from the input"]
    assert found["engine"] == "onnxruntime" and found["tokens_per_second"] > 0
    for text in found["texts"]:
        assert (text["tokens"], text["prompt_tokens"], text["ended"]) == (9, len(text["prompt"]), "tokens")
        (alone,) = json.loads(generate(folder, "--prompt", text["prompt"], *options, "--json").stdout)["texts"]
        assert alone == text
    printed = generate(folder, *prompts, *options, input="from the input").stdout
    for i, text in enumerate(found["texts"]):
        assert f"--- {i + 1} of 4 ---\n{text['prompt']}{text['text']}\n" in printed


def test_options_reach_what_they_mean(folder: Path) -> None:
    def ids(*options: object) -> list[int]:
        found = generate(folder, "--prompt", "hello world", "--tokens", 20, "--json", *options)
        return list(json.loads(found.stdout)["texts"][0]["ids"])

    greedy = ids("--temperature", 0)
    assert ids("--temperature", 3, "--top-k", 1) == greedy == ids("--temperature", 3, "--top-p", 1e-6)
    assert ids("--temperature", 3, "--seed", 1) == ids("--temperature", 3, "--seed", 1) != ids("--temperature", 3)
    assert len(set(ids("--temperature", 0, "--repetition-penalty", 1e9))) == 20 > len(set(greedy))
    text = json.loads(
        generate(folder, "--prompt", "hello world", "--tokens", 20, "--temperature", 0, "--json").stdout
    )["texts"][0]["text"]  # fmt: skip
    stop = text[6:8]
    options = ["--tokens", 20, "--temperature", 0, "--json", "--stop", "never", "--stop", stop]
    (stopped,) = json.loads(generate(folder, "--prompt", "hello world", *options).stdout)["texts"]
    assert stopped["text"] == text.partition(stop)[0] and stopped["ended"] == "stop"


def test_bytes_that_are_no_text_are_marked(folder: Path) -> None:
    broken = b"a\xffb".decode(errors="surrogateescape")  # as the command line brings them
    found = generate(folder, "--prompt", broken, "--tokens", 2, "--stop", broken, "--json")
    assert json.loads(found.stdout)["texts"][0]["prompt"] == "a\ufffdb"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "there is no prompt"),
        (["--prompt", ""], "the prompt has no token"),
        (["--prompt", "x", "--stop", ""], "a stop string is empty"),
        (["--prompt", "x", "--top-p", "1.5"], "top-p is 1.5"),
        (["--prompt", "x", "--top-k", "0"], "top-k is 0"),
        (["--prompt", "x", "--temperature", "-1"], "a temperature of -1"),
        (["--prompt", "x", "--repetition-penalty", "0"], "a repetition penalty of 0"),
        (["--prompt", "x" * 250, "--tokens", "50"], "prompt and answer may take 300 tokens"),
        (["--prompt", "x", "--system", "be kind"], "--system is part of a conversation"),
        (["--prompt", "x", "--chat"], "this model has no chat template"),
        (["--prompt", "x", "--set", "window=4"], "nothing can be set"),
        (["--prompt-file", "/nowhere"], "can't read /nowhere"),
    ],
)
def test_mistakes_are_one_sentence_and_help(folder: Path, options: list[str], message: str) -> None:
    found = generate(folder, *options)
    told = found.stderr.replace("\n", " ")
    assert found.exit_code == 2 and told.startswith("error: ") and message in told and "= help:" in told
    assert "Traceback" not in found.output and not found.stdout


@pytest.fixture(scope="module", params=["tokenizer.json", "tokenizer.model"])
def checkpoint(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of Hugging Face's layout, with a chat template, ended by two ids."""
    folder = tmp_path_factory.mktemp("hf") / "checkpoint"
    words = json_folder if request.param == "tokenizer.json" else pieces_folder
    words(folder, apart=True)
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=load_tokenizer(folder).vocab_size, hidden_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, intermediate_size=40, sliding_window=6, query_pre_attn_scalar=24,
        eos_token_id=[1, 5],
    )  # fmt: skip
    model = transformers.Gemma2ForCausalLM(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0, 0.4)
            if "post" in name:
                p.add_(2)  # layers that say more than the embedding
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(checkpoint: Path) -> tuple[Path, Path]:
    """(as imported, as exported again)."""
    run, out = checkpoint.parent / "run", checkpoint.parent / "onnx"
    assert planform("import", checkpoint, "--spec", "gemma2", "--out", run).exit_code == 0
    assert planform("export", run, "--out", out, "--positions", 128).exit_code == 0
    return run, out


def test_an_imported_checkpoint_chats_and_so_does_its_export(checkpoint: Path, folders: tuple[Path, Path]) -> None:
    run, out = folders
    options = ["--chat", "--prompt", "hi there", "--prompt", "how now brown cow", "--tokens", 24, "--temperature", 0]
    onnx = json.loads(generate(out, *options, "--json").stdout)
    if (run / "tokenizer" / "tokenizer.json").exists():  # XLA has no part in how text becomes ids: once is enough
        xla = json.loads(generate(run, *options, "--json").stdout)
        assert xla["texts"] == onnx["texts"] and (xla["engine"], onnx["engine"]) == ("XLA", "onnxruntime")
    theirs = transformers.Gemma2ForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").eval()
    model = open_model(out)
    for text in onnx["texts"]:
        talk = [{"role": "user", "content": text["prompt"]}]
        ids = model.conversation(talk)
        assert ids[0] == 2 and ids.tolist().count(2) == 1 and text["prompt_tokens"] == len(ids)
        want = theirs.generate(torch.tensor(ids)[None], max_new_tokens=24, do_sample=False, eos_token_id=[1, 5])
        want = want[0, len(ids) :].tolist()
        assert [*text["ids"], *want[len(text["ids"]) :]] == want and want[len(text["ids"]) :] in ([], [1], [5])
        assert text["text"] == model.tokenizer.decode(text["ids"])
    assert model.ends == {1, 5} == open_model(run).turn_ends()


def test_ids_of_config_json_alone_end_a_text(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "generation_config.json").rename(tmp_path / "away")
    run, out = tmp_path / "run", tmp_path / "onnx"
    try:
        assert planform("import", checkpoint, "--spec", "gemma2", "--out", run).exit_code == 0
    finally:
        (tmp_path / "away").rename(checkpoint / "generation_config.json")
    assert planform("export", run, "--out", out, "--positions", 64).exit_code == 0
    assert open_model(run).ends == open_model(out).ends == {1, 5}


def test_a_conversation_on_the_terminal(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = tmp_path / "run", tmp_path / "onnx"
    assert planform("import", checkpoint, "--spec", "gemma2", "--out", run).exit_code == 0
    assert planform("export", run, "--out", out, "--positions", 128).exit_code == 0
    assert "there is no prompt" in generate(out, "--chat").stderr  # not on a terminal
    asked = iter(["hi there", "", "and then?", "x" * 400, "bye"])

    def ask(prompt: str) -> str:
        words = next(asked, None)
        if words is None:
            raise EOFError
        return words

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr(command, "_terminal", lambda: True)
    fed: list[Any] = []
    conversation: Callable[..., Any] = type(open_model(out)).conversation
    monkeypatch.setattr(
        "planform.runtime.generation.model.Model.conversation",
        lambda self, messages: (fed.append(list(messages)), conversation(self, messages))[1],
    )
    found = generate(out, "--chat", "--tokens", 6, "--temperature", 0)
    assert found.exit_code == 0 and "prompt and answer may take" in found.stderr
    turns = [[m["role"] for m in messages] for messages in fed[1:]]
    assert turns == [["user"], ["user", "assistant", "user"], ["user", "assistant"] * 2 + ["user"]] + [turns[-1]]
    answers = [m["content"] for m in fed[-1] if m["role"] == "assistant"]
    assert found.stdout.startswith("".join(a + "\n" for a in answers)) and found.stdout.endswith("\n\n")
    assert [m["content"] for m in fed[-1] if m["role"] == "user"] == ["hi there", "and then?", "bye"]
