"""The one model in the form that each tool wants. Built once into a folder, by steps that can be taken up again.

FOLDER/SIZE/checkpoint  in Hugging Face's layout: random weights made by transformers
FOLDER/SIZE/run         ours, imported from it; ours-* exported from that
FOLDER/SIZE/genai-*     by onnxruntime-genai's own builder
FOLDER/SIZE/*.gguf      for llama.cpp

Of the size `trained` the run comes first, trained here, and the checkpoint is exported from it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..sizes import SIZES, TRAINED, Size

ROOT = Path(__file__).parents[3]
POSITIONS = 8192

OURS = {
    "ours-f32": (),
    "ours-int4": ("--quantize", "int4"),
    "ours-int4-kv8": ("--quantize", "int4", "--cache", "int8"),
    "ours-int8": ("--quantize", "int8"),
    "ours-int8-kv8": ("--quantize", "int8", "--cache", "int8"),
    "ours-w8": ("--quantize", "w8"),
}
"""Our artefacts, by the options of `planform export`."""

PREPARED = "-prepared"
"""Ends the names of those that `planform prepare` laid out for this machine."""

GENAI = {
    "genai-f32": ("fp32", {}),
    "genai-int4": ("int4", {"int4_block_size": 32, "int4_accuracy_level": 4}),
}
"""Those of onnxruntime-genai's builder, by precision and options; block and accuracy level as fast as it has them."""


class Unavailable(Exception):
    """A form that can't be made here; the message says why."""


def default_folder() -> Path:
    """PLANFORM_BENCH, or a folder among the user's caches."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("PLANFORM_BENCH") or caches / "planform" / "bench")


def built(folder: Path, size: str, form: str) -> Path:
    """The path of a form of the model, made now if it isn't there. Raises: Unavailable."""
    folder = folder / size
    path = folder / form
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    if size == TRAINED and form == "run":
        return _once(path, _train)
    if size == TRAINED and form == "checkpoint":
        run = built(folder.parent, size, "run")
        return _once(path, lambda out: _written_back(run, out))
    if form == "checkpoint":
        return _once(path, lambda out: _random(SIZES[size], out))
    source = built(folder.parent, size, "checkpoint")
    if form == "run":
        return _once(path, lambda out: _planform("import", str(source), "--spec", SIZES[size].spec, "--out", str(out)))
    if (plain := form.removesuffix(PREPARED)) in OURS:
        run = built(folder.parent, size, "run")
        return _once(path, lambda out: _export(run, out, OURS[plain], prepare=plain != form))
    if form in GENAI:
        return _once(path, lambda out: _genai(source, out, *GENAI[form]))
    if form.endswith(".gguf"):
        return _once(path, lambda out: _gguf(SIZES[size], source, out, form.removesuffix(".gguf")))
    raise ValueError(f"there is no form `{form}`")


def weight_bytes(path: Path) -> int:
    """Bytes of the file that holds the weights: what decoding a token reads."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.iterdir() if p.suffix in (".data", ".safetensors"))


def _once(path: Path, make: Callable[[Path], None]) -> Path:
    """What `make` writes, under its name only when it is whole."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as beside:
        made = Path(beside) / path.name
        make(made)
        os.rename(made, path)
    return path


def _run(*command: str, **environment: str) -> None:
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        lines = [line.strip(" │") for line in (done.stderr or done.stdout).splitlines()]
        said = [line for line in lines if any(c.isascii() for c in line)] or [f"ended with {done.returncode}"]
        raise Unavailable(f"{' '.join(c for c in command[2:] if len(c) < 30)}: {said[-1][:300]}")


def _planform(*arguments: str) -> None:
    code = "import sys; from planform.runtime.cli import app; app(sys.argv[1:])"
    path = os.pathsep.join(filter(None, (str(ROOT / ".pkg"), os.environ.get("PYTHONPATH"))))
    _run(sys.executable, "-c", code, *arguments, PYTHONPATH=path)


def _export(run: Path, out: Path, options: tuple[str, ...], prepare: bool) -> None:
    _planform("export", str(run), "--out", str(out), "--positions", str(POSITIONS), *options)
    if prepare:
        _planform("prepare", str(out))


def _random(size: Size, out: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(size.model_type, **size.config)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(out)
    add_tokenizer(out, size.vocab)


def _train(out: Path) -> None:
    """On the source of the standard library, byte by byte: about five minutes of two cores."""
    dims = {**SIZES[TRAINED].dims, "rate": 0.002, "train.checkpoint.keep": 1, "train.seed": 0}
    overrides = [x for k, v in dims.items() for x in ("--set", f"{k}={v}")]
    steps = os.environ.get("PLANFORM_BENCH_STEPS", "500")
    _planform("train", "gemma2@small", *overrides, "--steps", steps, "--length", "384", "--out", str(out), "--quiet")


def _written_back(run: Path, out: Path) -> None:
    """A trained run as a checkpoint for the others."""
    _planform("export", str(run), "--to", "huggingface", "--out", str(out))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (out / name).unlink(missing_ok=True)
    add_tokenizer(out, SIZES[TRAINED].vocab)


def add_tokenizer(folder: Path, vocab: int) -> None:
    """A stand-in, since builders insist on one. No text goes through it."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocab)}, unk_token="w3"))
    names = {"pad_token": "w0", "eos_token": "w1", "bos_token": "w2", "unk_token": "w3"}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)


def _genai(source: Path, out: Path, precision: str, options: dict[str, int]) -> None:
    need("onnxruntime_genai")
    # Only the last entry's logits, as we do: its own default computes those of the whole prompt.
    extra = [f"{k}={v}" for k, v in {**options, "prune_lm_head": "true"}.items()]
    with tempfile.TemporaryDirectory() as scratch:
        _run(
            sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(out),
            "-p", precision, "-e", "cpu", "-c", scratch, "--extra_options", *extra,
        )  # fmt: skip


def _gguf(size: Size, source: Path, out: Path, format: str) -> None:
    from .gguf_file import write_gguf

    need("gguf")
    import gguf

    if size.spec not in gguf.MODEL_ARCH_NAMES.values():
        raise Unavailable(f"llama.cpp knows no architecture `{size.spec}`")
    write_gguf(source, out, format)


def need(module: str) -> None:
    """Raises: Unavailable where a module of the `bench` extra isn't installed."""
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise Unavailable(f"{module} is not installed (.ci/env bench)")
