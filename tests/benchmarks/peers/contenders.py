"""The tools, each at its own best settings: a thread a core, its fastest caches, files mapped where it can."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..sizes import Size
from .contender import Contender
from .deepmind import DeepmindJax, DeepmindTorch


class Ours(Contender):
    def __init__(self, size: Size, path: Path, threads: int) -> None:
        super().__init__(size, path, threads)
        from planform.backends.onnx import Session

        self.session = Session(path, threads=threads)

    def start(self, room: int) -> None:
        self.session.reset(1, room)

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        return self.session.prefill(tokens[None])[0, -1]


class OursMapped(Ours):
    """The weights read where the file is mapped, not laid out anew: for whoever starts often or has little memory."""

    def __init__(self, size: Size, path: Path, threads: int) -> None:
        Contender.__init__(self, size, path, threads)
        from planform.backends.onnx import Session

        self.session = Session(path, threads=threads, packed=False)


class Genai(Contender):
    """onnxruntime-genai, with its own generator loop."""

    def __init__(self, size: Size, path: Path, threads: int) -> None:
        super().__init__(size, path, threads)
        import onnxruntime_genai as og

        self.og = og
        config = og.Config(str(path))
        session = {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
        config.overlay(json.dumps(session))
        self.model = og.Model(config)
        told = json.loads((path / "genai_config.json").read_text())["model"]
        window = told["decoder"].get("sliding_window", {})
        self.least = window.get("window_size", 0) + window.get("cache_slack", 16)

    def start(self, room: int) -> None:
        settings = self.og.GeneratorParams(self.model)
        # With the least length the end token is never drawn: random weights would end at once.
        length = max(room, self.least)
        settings.set_search_options(max_length=length, min_length=length, do_sample=False)
        self.generator: Any = None  # the old stream's caches go before the new one's come
        self.generator = self.og.Generator(self.model, settings)

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        self.generator.append_tokens(tokens.astype(np.int32))
        return np.array(self.generator.get_logits()).reshape(-1)

    def prompt(self, tokens: np.ndarray) -> None:
        self.generator.append_tokens(tokens.astype(np.int32))
        self.generator.generate_next_token()

    def step(self) -> None:
        self.generator.generate_next_token()


class Llama(Contender):
    """llama.cpp. Its loader maps the file, so pages come in with the first prompt."""

    flash = False

    def __init__(self, size: Size, path: Path, threads: int) -> None:
        super().__init__(size, path, threads)
        import llama_cpp

        self.library = llama_cpp
        self.model: Any = None

    def start(self, room: int) -> None:
        if self.model is None or self.model.n_ctx() < room:
            self.model = self.library.Llama(
                str(self.path), n_ctx=room, n_batch=512, n_ubatch=512, n_threads=self.threads,
                n_threads_batch=self.threads, flash_attn=self.flash, swa_full=False, verbose=False,
            )  # fmt: skip
        self.model.reset()
        self.library.llama_memory_clear(self.library.llama_get_memory(self.model.ctx), True)

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        self.model.eval(tokens.tolist())
        last = self.library.llama_get_logits_ith(self.model.ctx, -1)
        return np.array(np.ctypeslib.as_array(last, (self.model.n_vocab(),)))


class LlamaFlash(Llama):
    flash = True


class Torch(Contender):
    """transformers on torch: eager where a softcap bends attention's scores, since no other of its attentions applies
    it on a CPU; else its default, SDPA."""

    def __init__(self, size: Size, path: Path, threads: int) -> None:
        super().__init__(size, path, threads)
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.torch, self.transformers = torch, transformers
        settings = transformers.AutoConfig.from_pretrained(path)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation=attention(settings)
        ).eval()

    def start(self, room: int) -> None:
        self.cache = self.transformers.DynamicCache(config=self.model.config)
        self.length = 0
        if hasattr(self.model, "_setup_cache"):  # recurrent states live in the modules, and stay there
            self.model._setup_cache(self.model.config, 1, self.model.device, self.model.dtype)

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        torch = self.torch
        with torch.inference_mode():
            found = self.model(
                input_ids=torch.tensor(tokens[None].astype(np.int64)), past_key_values=self.cache, use_cache=True,
                position_ids=torch.arange(self.length, self.length + len(tokens))[None], logits_to_keep=1,
            )  # fmt: skip
        self.length += len(tokens)
        return found.logits[0, -1].numpy()


def attention(settings: Any) -> str | None:
    """The fastest of transformers' attentions that gives what a configuration says, None for its default."""
    return "eager" if getattr(settings, "attn_logit_softcapping", None) else None


class HandJax(Contender):
    """What somebody writes in JAX by hand: one compiled prefill of the prompt's length, one donated step."""

    warm = None

    def __init__(self, size: Size, path: Path, threads: int) -> None:
        super().__init__(size, path, threads)
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        from .. import hand

        self.stream = hand.of(size.spec).Stream(size, path)

    def start(self, room: int) -> None:
        self.stream.start(room)

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        return self.stream.feed(tokens)


KINDS: dict[str, tuple[type[Contender], str, str]] = {
    **{f"ours-{n}": (Ours, f"ours-{n}", "") for n in ("f32", "int4", "int4-kv8", "int8", "int8-kv8", "w8")},
    "ours-int4-prepared": (Ours, "ours-int4-prepared", ""),
    "ours-f32-mapped": (OursMapped, "ours-f32", ""),
    **{f"genai-{n}": (Genai, f"genai-{n}", "onnxruntime_genai") for n in ("f32", "int4")},
    **{f"llama-{n}": (Llama, f"{n}.gguf", "llama_cpp") for n in ("f32", "q8_0", "q4_0")},
    **{f"llama-{n}-flash": (LlamaFlash, f"{n}.gguf", "llama_cpp") for n in ("f32", "q8_0", "q4_0")},
    "torch-f32": (Torch, "checkpoint", "transformers"),
    "jax-f32": (HandJax, "checkpoint", "jax"),
    "deepmind-f32": (DeepmindJax, "checkpoint", "recurrentgemma"),
    "deepmind-torch-f32": (DeepmindTorch, "checkpoint", "recurrentgemma"),
}
"""By name: what runs it, the form of the model that it loads, the module that it needs."""
