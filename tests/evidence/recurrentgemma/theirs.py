"""The other implementations: google-deepmind/recurrentgemma in JAX and in torch, with random weights of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from planform.compiler.elaborate import elaborate
from planform.compiler.ir import Graph
from planform.compiler.weights import WeightsMap, weights_map
from planform.spec import Diagnostics, Spec, dim_values, load

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Model:
    """A random model: the spec, and its weights by the names of google-deepmind's flax parameters (`a/b/c`).

    overrides  those that make it from the size `small`
    paper  as in the Griffin paper: no scale of the embedding, no cap of the logits
    """

    spec: Spec
    overrides: tuple[str, ...]
    flat: Mapping[str, np.ndarray]
    weights: WeightsMap
    paper: bool = False

    @property
    def dims(self) -> dict[str, int]:
        return {k: int(v) for k, v in dim_values(self.spec.dims, Diagnostics()).items() if float(v).is_integer()}

    @property
    def graph(self) -> Graph:
        return elaborate(self.spec)

    @property
    def parameters(self) -> Arrays:
        """By our names."""
        return ours(self.weights, self.flat)


def ours(weights: WeightsMap, flat: Mapping[str, np.ndarray]) -> Arrays:
    return {p: array for t in weights.tensors for p, array in t.to_ours(np.asarray(flat[t.name]))}


def model(*overrides: str, paper: bool = False, slow: tuple[float, float] | None = None, seed: int = 0) -> Model:
    """`recurrentgemma@small` (or `griffin@small`) with overrides, its weights drawn so that layers say as much as
    the embedding and the cap of the logits bends.

    slow  what goes into the sigmoids of the second layer's decays, from to: where they are near 0, a state stays for
          long, and 1 - a^2 is hard to compute
    """
    weights = weights_map(load("recurrentgemma", "small", overrides), "deepmind")
    spec = load("griffin", "small", overrides) if paper else weights.spec
    rng = np.random.default_rng(seed)

    def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
        leaf = name.rpartition("/")[2]
        if leaf == "input_embedding":
            array = rng.normal(0, 0.6, shape)
        elif leaf == "a_param":
            array = np.log(np.exp(-np.log(rng.uniform(0.9, 0.999, shape))) - 1)  # their rnn_real_param_init
        elif name == "blocks.1/recurrent_block/rg_lru/a_gate/b" and slow:
            array = rng.uniform(*slow, shape)
        elif "a_gate" in name:
            array = rng.normal(0, 0.1 if leaf == "w" else 0.5, shape)
        elif name.endswith("conv_1d/w"):
            array = rng.normal(0, 0.5, shape)
        elif leaf in ("kernel", "w"):
            last = name.split("/")[-2] in ("linear_out", "proj_final", "ffw_down")
            array = rng.normal(0, (4 if last else 1.5) * shape[-2] ** -0.5, shape)
        else:
            array = rng.normal(0, 0.3, shape)
        return array.astype(np.float32)

    return Model(spec, overrides, {t.name: drawn(t.name, t.shape) for t in weights.tensors}, weights, paper)


# -- google-deepmind's -------------------------------------------------------------------------------------------


def config(m: Model) -> Any:
    from recurrentgemma import common

    d = m.dims
    kinds = [common.TemporalBlockType.RECURRENT] * 2 + [common.TemporalBlockType.ATTENTION]
    return common.GriffinConfig(
        vocab_size=d["vocab"], width=d["d"], mlp_expanded_width=d["ff"], num_heads=d["heads"], lru_width=d["lru"],
        block_types=tuple(kinds[i % 3] for i in range(d["layers"])), embeddings_scale_by_sqrt_dim=not m.paper,
        attention_window_size=d["window"], logits_soft_cap=0.0 if m.paper else 30.0,
        # Their loop over time is written out 128 times: a minute of compiling.
        scan_type=common.ScanType.ASSOCIATIVE_NATIVE,
    )  # fmt: skip


def tree(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}, as flax has it."""
    from flax.traverse_util import unflatten_dict

    found: dict[str, Any] = unflatten_dict({tuple(k.split("/")): v for k, v in flat.items()})
    return found


@contextmanager
def own_blocks(m: Model, modules: Any) -> Iterator[None]:
    """Within, their recurrent blocks have as many gate blocks as the spec says: their whole model has but one number
    for those and for the heads of attention, their modules have two."""
    original, blocks = modules.ResidualBlock, m.dims["blocks"]

    def built(**given: Any) -> Any:
        recurrent = given["temporal_block_type"].name == "RECURRENT"
        return original(**{**given, "num_heads": blocks if recurrent else given["num_heads"]})

    built.init_cache = original.init_cache  # type: ignore[attr-defined]
    with mock.patch.object(modules, "ResidualBlock", built):
        yield


def save(m: Model, folder: Path, dtype: str = "float32") -> Path:
    """Saves the weights as their `save_parameters` does."""
    import jax.numpy as jnp
    from recurrentgemma.jax import utils

    utils.save_parameters(str(folder), tree({k: jnp.asarray(v, dtype) for k, v in m.flat.items()}))
    return folder


def griffin(m: Model, params: Any, inputs: Mapping[str, np.ndarray]) -> Any:
    """Their logits, for `jax.jit` and `jax.grad`; `params` is the tree of arrays, in the dtype to compute in."""
    import jax.numpy as jnp
    from recurrentgemma import jax as rg
    from recurrentgemma.jax import modules

    tokens, position = jnp.asarray(inputs["tokens"]), jnp.asarray(inputs["position"])
    with own_blocks(m, modules):
        net = rg.Griffin(config(m), gradient_checkpointing=False)
        return net.apply({"params": params}, tokens, position, return_cache=False)[0]


def jax_logits(m: Model, inputs: Mapping[str, np.ndarray], dtype: str = "float32") -> np.ndarray:
    import jax
    import jax.numpy as jnp

    with jax.enable_x64(dtype == "float64"):
        params = tree({k: jnp.asarray(v, dtype) for k, v in m.flat.items()})
        return np.asarray(jax.jit(lambda p: griffin(m, p, inputs))(params))


def jax_gradients(m: Model, inputs: Mapping[str, np.ndarray], weigh: np.ndarray) -> Arrays:
    """Of sum(logits * weigh), in float64, by their names."""
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict

    with jax.enable_x64(True):
        params = tree({k: jnp.asarray(v, jnp.float64) for k, v in m.flat.items()})
        found = jax.jit(jax.grad(lambda p: jnp.sum(griffin(m, p, inputs) * weigh)))(params)
        gradients: Arrays = jax.device_get(flatten_dict(found, sep="/"))
    return gradients


def torch_logits(m: Model, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Theirs in torch, float32."""
    import jax.numpy as jnp
    import torch
    from recurrentgemma import conversion
    from recurrentgemma import torch as rg
    from recurrentgemma.torch import modules

    with own_blocks(m, modules):
        net = rg.Griffin(config(m), gradient_checkpointing=False)
    net.load_state_dict(
        conversion.flax_params_to_pytorch_state_dict(tree({k: jnp.asarray(v) for k, v in m.flat.items()}))
    )
    with torch.no_grad():
        found = net(torch.tensor(inputs["tokens"]), torch.tensor(inputs["position"]), return_cache=False)[0]
    array: np.ndarray = found.numpy()
    return array
