"""Google DeepMind's own RecurrentGemma (PyPI's recurrentgemma): flax on JAX, and its twin on torch.

Both as its samplers use them: the prompt but for its last token without logits, then one step a token. On JAX each is
one compiled program, the caches donated from step to step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import tensors
from ..sizes import Size
from .contender import Contender

SCAN = "ASSOCIATIVE_NATIVE"
"""Of its two forms of the recurrence that run on a CPU the better one. AUTO takes LINEAR_NATIVE, with which a training
step of rg-t40 took 3.1 to 3.7 s where this one took 2.3 to 3.0 s in the same rounds, 6.0 GB instead of 2.3 GB, and
minutes to compile (`python -m tests.benchmarks.xla step --size rg-t40 --variants deepmind,deepmind:LINEAR_NATIVE`)."""

NAMES = {
    "temporal_pre_norm.weight": "temporal_pre_norm.scale",
    "channel_pre_norm.weight": "channel_pre_norm.scale",
    **{f"temporal_block.linear_{k}.{n}": f"recurrent_block.linear_{k}.{n}" for k in ("y", "x", "out")
       for n in ("weight", "bias")},
    "temporal_block.conv_1d.weight": "recurrent_block.conv_1d.w",
    "temporal_block.conv_1d.bias": "recurrent_block.conv_1d.b",
    "temporal_block.rg_lru.recurrent_param": "recurrent_block.rg_lru.a_param",
    "temporal_block.rg_lru.input_gate_weight": "recurrent_block.rg_lru.input_gate.w",
    "temporal_block.rg_lru.input_gate_bias": "recurrent_block.rg_lru.input_gate.b",
    "temporal_block.rg_lru.recurrent_gate_weight": "recurrent_block.rg_lru.a_gate.w",
    "temporal_block.rg_lru.recurrent_gate_bias": "recurrent_block.rg_lru.a_gate.b",
    **{f"temporal_block.{k}_proj.weight": f"attention_block.proj_{k}.weight" for k in "qkv"},
    **{f"temporal_block.o_proj.{n}": f"attention_block.proj_final.{n}" for n in ("weight", "bias")},
    **{f"mlp_block.down_proj.{n}": f"mlp_block.ffw_down.{n}" for n in ("weight", "bias")},
}  # fmt: skip
"""Of a layer, by transformers' names. The rest differs in shape."""


def config(size: Size, scan: str = SCAN) -> Any:
    from recurrentgemma import common

    kinds = common.TemporalBlockType
    attends = [n % 3 == 2 for n in range(size.layers)]
    return common.GriffinConfig(
        vocab_size=size.vocab, width=size.d, mlp_expanded_width=size.ff, num_heads=size.heads, lru_width=size.d,
        block_types=tuple(kinds.ATTENTION if a else kinds.RECURRENT for a in attends),
        embeddings_scale_by_sqrt_dim=True, attention_window_size=size.window, logits_soft_cap=30.0,
        scan_type=common.ScanType[scan],
    )  # fmt: skip


def griffin(size: Size, scan: str = SCAN) -> Any:
    """The flax module; nothing is computed twice to save memory."""
    import jax.numpy as jnp
    from recurrentgemma import jax as library

    return library.Griffin(config(size, scan), dtype=jnp.float32, gradient_checkpointing=False)


def training(size: Size, scan: str) -> tuple[Callable[[Any, Any], Any], Callable[[], Any]]:
    """(the loss of parameters and tokens [batch, time + 1], what makes the parameters)."""
    import jax
    import jax.numpy as jnp

    from ..hand.parts import cross_entropy

    model = griffin(size, scan)

    def loss(params: Any, tokens: Any) -> Any:
        x, y = tokens[:, :-1], tokens[:, 1:]
        at = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape)
        return cross_entropy(model.apply(params, x, at, return_cache=False)[0], y)

    def make() -> Any:
        one = jnp.zeros((1, 1), jnp.int32)
        return jax.jit(model.init)(jax.random.key(0), one, one)

    return loss, make


def renamed(found: dict[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    """A checkpoint of transformers' in float32 under the names of the torch twin, whose matrices are [out, in] too."""
    made = {"embedder.input_embedding": found["model.embed_tokens.weight"],
            "final_norm.scale": found["model.final_norm.weight"]}  # fmt: skip
    for i in range(layers):
        theirs, mine = f"model.layers.{i}.", f"blocks.{i}."
        made |= {mine + new: found[theirs + old] for old, new in NAMES.items() if theirs + old in found}
        conv = mine + "recurrent_block.conv_1d.w"
        if conv in made:
            made[conv] = made[conv][:, 0].T
        up = [[found[f"{theirs}mlp_block.{k}_proj.{n}"] for k in ("gate", "up")] for n in ("weight", "bias")]
        made[mine + "mlp_block.ffw_up.w"] = np.stack([a.T for a in up[0]])
        made[mine + "mlp_block.ffw_up.b"] = np.stack(up[1])[:, None, None]
    return {name: np.ascontiguousarray(a, np.float32) for name, a in made.items()}


def nested(named: dict[str, np.ndarray]) -> dict[str, Any]:
    """Those as flax has them: kernels [in, out], in a tree."""
    tree: dict[str, Any] = {}
    for name, array in named.items():
        *path, leaf = name.replace("blocks.", "blocks#").split(".")
        at = tree
        for key in path:
            at = at.setdefault(key.replace("#", "."), {})
        at["kernel" if leaf == "weight" else leaf] = array.T if leaf == "weight" else array
    return {"params": tree}


class DeepmindJax(Contender):
    warm = None

    def __init__(self, size: Size, path: Path, threads: int) -> None:
        super().__init__(size, path, threads)
        import jax
        import jax.numpy as jnp

        model = griffin(size)
        self.params = jax.tree.map(jnp.asarray, nested(renamed(dict(tensors(path)), size.layers)))

        def prompt(params: Any, tokens: Any) -> Any:
            at = jnp.arange(tokens.shape[1])[None]
            return model.apply(params, tokens, at, return_logits=False)[1]

        def step(params: Any, token: Any, at: Any, cache: Any) -> Any:
            logits, cache = model.apply(params, token[None, None], at[None, None], cache)
            return logits[0, -1], cache

        self._prompt, self._step = jax.jit(prompt), jax.jit(step, donate_argnums=3)

    def start(self, room: int) -> None:
        self.cache, self.length = None, 0

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        if self.cache is None:
            self.length = len(tokens) - 1
            self.cache = self._prompt(self.params, tokens[None, :-1])
            tokens = tokens[-1:]
        for token in tokens:
            logits, self.cache = self._step(self.params, token, np.int32(self.length), self.cache)
            self.length += 1
        return np.asarray(logits)


class DeepmindTorch(Contender):
    def __init__(self, size: Size, path: Path, threads: int) -> None:
        super().__init__(size, path, threads)
        import torch
        from recurrentgemma import torch as library

        torch.set_num_threads(threads)
        self.torch = torch
        self.model = library.Griffin(config(size), gradient_checkpointing=False, device="cpu", dtype=torch.float32)
        weights = renamed(dict(tensors(path)), size.layers)
        self.model.load_state_dict({name: torch.from_numpy(a) for name, a in weights.items()})

    def start(self, room: int) -> None:
        self.cache, self.length = None, 0

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        if self.cache is None and len(tokens) > 1:
            self._call(tokens[:-1], logits=False)
            tokens = tokens[-1:]
        return self._call(tokens, logits=True)[0, -1].numpy()

    def _call(self, tokens: np.ndarray, logits: bool) -> Any:
        given = self.torch.from_numpy(tokens[None].astype(np.int64))
        at = self.torch.arange(self.length, self.length + len(tokens))[None]
        with self.torch.inference_mode():
            found, self.cache = self.model(given, at, self.cache, return_logits=logits)
        self.length += len(tokens)
        return found
