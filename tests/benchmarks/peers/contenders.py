"""The tools behind one face: load a form of the model, take a prompt, give one token after the other, greedily.

Each at its own best settings: a thread a core, its fastest caches, files mapped where it can. Nothing is imported
before it is needed, so that a process holds one tool only.
"""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class Timed:
    """Seconds of a prompt and of every token after it; the tokens."""

    prefill: float
    steps: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


class Contender(ABC):
    """One stream of a model. `form` names what of models.py it loads."""

    def __init__(self, path: Path, threads: int) -> None:
        """Loads the model, ready to run."""
        self.path, self.threads = path, threads

    @abstractmethod
    def start(self, room: int) -> None:
        """Begins a new stream with room for so many entries."""

    @abstractmethod
    def feed(self, tokens: np.ndarray) -> np.ndarray:
        """Takes the next entries, int32[time]; returns the logits [vocab] after the last."""

    def greedy(self, prompt: np.ndarray, new: int) -> Timed:
        """Times a prompt and `new` steps after it."""
        begin = time.perf_counter()
        token = int(self.feed(prompt).argmax())
        found = Timed(time.perf_counter() - begin, tokens=[token])
        for _ in range(new):
            begin = time.perf_counter()
            token = int(self.feed(np.array([token], np.int32)).argmax())
            found.steps.append(time.perf_counter() - begin)
            found.tokens.append(token)
        return found


class Ours(Contender):
    def __init__(self, path: Path, threads: int) -> None:
        super().__init__(path, threads)
        from planform.backends.onnx import Session

        self.session = Session(path, threads=threads)

    def start(self, room: int) -> None:
        self.session.reset(1, room)

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        return self.session.prefill(tokens[None])[0, -1]


class OursMapped(Ours):
    """The weights read where the file is mapped, not laid out anew: for whoever starts often or has little memory."""

    def __init__(self, path: Path, threads: int) -> None:
        Contender.__init__(self, path, threads)
        from planform.backends.onnx import Session

        self.session = Session(path, threads=threads, packed=False)


class Genai(Contender):
    """onnxruntime-genai, with its own generator loop."""

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__(path, threads)
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

    def greedy(self, prompt: np.ndarray, new: int) -> Timed:
        begin = time.perf_counter()
        self.generator.append_tokens(prompt.astype(np.int32))
        self.generator.generate_next_token()
        found = Timed(time.perf_counter() - begin)
        for _ in range(new):
            begin = time.perf_counter()
            self.generator.generate_next_token()
            found.steps.append(time.perf_counter() - begin)
        found.tokens = [int(t) for t in self.generator.get_sequence(0)[len(prompt) :]]
        return found


class Llama(Contender):
    """llama.cpp. Its loader maps the file, so pages come in with the first prompt."""

    flash = False

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__(path, threads)
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
    """transformers on torch, eager: the only one of its attentions on CPU that applies the softcap."""

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__(path, threads)
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.torch, self.transformers = torch, transformers
        self.model = transformers.Gemma2ForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    def start(self, room: int) -> None:
        self.cache = self.transformers.DynamicCache(config=self.model.config)
        self.length = 0

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        torch = self.torch
        with torch.inference_mode():
            found = self.model(
                input_ids=torch.tensor(tokens[None].astype(np.int64)), past_key_values=self.cache, use_cache=True,
                position_ids=torch.arange(self.length, self.length + len(tokens))[None], logits_to_keep=1,
            )  # fmt: skip
        self.length += len(tokens)
        return found.logits[0, -1].numpy()


class HandJax(Contender):
    """What somebody writes in JAX by hand: one compiled prefill of the prompt's length, one donated step."""

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__(path, threads)
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        from .hand_infer import Decoder

        self.decoder = Decoder(path)

    def start(self, room: int) -> None:
        self.decoder.start(room)

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        return self.decoder.feed(tokens)


KINDS: dict[str, tuple[type[Contender], str, str]] = {
    **{f"ours-{n}": (Ours, f"ours-{n}", "") for n in ("f32", "int4", "int4-kv8", "int8", "int8-kv8", "w8")},
    "ours-f32-mapped": (OursMapped, "ours-f32", ""),
    **{f"genai-{n}": (Genai, f"genai-{n}", "onnxruntime_genai") for n in ("f32", "int4")},
    **{f"llama-{n}": (Llama, f"{n}.gguf", "llama_cpp") for n in ("f32", "q8_0", "q4_0")},
    **{f"llama-{n}-flash": (LlamaFlash, f"{n}.gguf", "llama_cpp") for n in ("f32", "q8_0", "q4_0")},
    "torch-f32": (Torch, "checkpoint", "transformers"),
    "jax-f32": (HandJax, "checkpoint", "jax"),
}
"""By name: what runs it, the form of the model that it loads, the module that it needs."""
