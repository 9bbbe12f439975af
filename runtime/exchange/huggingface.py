"""Hugging Face's folders: a config.json, which gives the sizes, and safetensors files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from planform.compiler.weights import WeightsMap, weights_map
from planform.spec import Spec, load

from ..errors import UserError
from ..tensor_files import TensorFolder, TensorWriter
from .format import Format, Found, differing, faults, lines, sizes

_DTYPES = ("float32", "bfloat16", "float16", "float64")


class HuggingFace(Format):
    name = "huggingface"
    layout = "Hugging Face's layout"

    def recognises(self, folder: Path) -> bool:
        return (folder / "config.json").is_file() or any(folder.glob("*.safetensors"))

    def read(self, folder: Path, name: str, overrides: Sequence[str]) -> Found:
        config = read_config(folder)
        spec, made, weights = fit(name, config, overrides)
        tensors = TensorFolder(folder)
        if listed := faults(tensors, weights):
            raise UserError(f"the tensors of {folder} don't fit {spec.name}:{lines(listed)}")
        return Found(spec, made, weights, tensors, folder, {"config": config})

    def write(
        self, folder: Path, weights: WeightsMap, get: Callable[[str], np.ndarray], facts: Mapping[str, Any]
    ) -> None:
        """With the configuration that the weights came with, if they did; what the spec says goes over it."""
        dtypes = set()
        with TensorWriter(folder) as writer:
            for t in weights.tensors:
                array = t.to_theirs(get)
                dtypes.add(array.dtype.name)
                writer.add(t.name, array)
        told = {**facts.get("config", {}), **weights.config.of_spec()}
        if weights.architecture:
            told["architectures"] = [weights.architecture]
        if len(dtypes) == 1 and (dtype := dtypes.pop()) in _DTYPES:
            told["dtype"] = dtype
        (folder / "config.json").write_text(json.dumps(told, indent=2) + "\n")


def read_config(folder: Path) -> dict[str, Any]:
    """Raises: UserError when there is no readable config.json."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except OSError as e:
        raise UserError(f"{folder} has no config.json", help="copy it too: the sizes of the model are in it") from e
    except ValueError as e:
        raise UserError(f"{path} is damaged: {e}") from e
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no mapping")
    if isinstance(config.get("id2label"), dict):  # where they keep how many classes there are
        config.setdefault("num_labels", len(config["id2label"]))
    return config


def fit(name: str, config: Mapping[str, Any], overrides: Sequence[str] = ()) -> tuple[Spec, list[str], WeightsMap]:
    """(the spec at the sizes of a configuration, the overrides that make them, its checked weights map).

    A size of the spec whose dims are those of the configuration is taken by its name.
    Raises: UserError naming the field that the spec can't express; SpecError.
    """
    offered = sizes(name)
    first = load(name, offered[0], overrides)
    try:
        dims = weights_map(first, HuggingFace.name).config.dims(config)
    except ValueError as e:
        raise UserError(str(e), help=f"this checkpoint is no {first.name} as {first.source.name} has it") from e
    best = min(offered, key=lambda s: len(differing(load(name, s), dims)))
    made = [*(f"{k}={v}" for k, v in differing(load(name, best), dims).items()), *overrides]
    spec = load(name, best, made)
    return spec, made, weights_map(spec, HuggingFace.name)
