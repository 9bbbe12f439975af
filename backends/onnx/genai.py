"""The folder that onnxruntime-genai loads: the same model with the names it wants, and `genai_config.json`.

Its generator feeds tokens and a mask, keeps every state in place, and finds states by their names: layer N's are
`past_key_values.N.KIND` and `present.N.KIND`. How far each stream is follows from the mask, so `length` and `count`
are computed in the model. Where the names differ from ours the model says so itself (`planform.names`), so `Session`
and `verify_contract` run the folder too. Made for and tested with onnxruntime-genai 0.18.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from .emitter import CannotLower, StateLayout
from .lowering import Lowered, live, read
from .session import ATTENTION_MASK, COUNT, IN_PLACE, LENGTH, NAMES, PAST, PRESENT
from .session import MODEL as FILE

CONFIG = "genai_config.json"
TOKENS, LOGITS = "input_ids", "logits"
PAST_NAME, PRESENT_NAME = "past_key_values.{layer}.{kind}", "present.{layer}.{kind}"

KINDS = {"key": "key", "value": "value", "inputs": "conv_state", "state": "recurrent_state"}
"""What the generator calls a state, by the last name of its path."""
RANKS = {"conv_state": (3,), "recurrent_state": (2, 4)}
"""Of the states that a recurrent layer has, which the generator takes in pairs."""

_LAYER = re.compile(r"(.*\])")


@dataclass(frozen=True)
class Generation:
    """What the generator's configuration says besides the model: ids of special tokens, `eos` any that end a text."""

    eos: tuple[int, ...] = ()
    bos: int | None = None
    pad: int | None = None

    @classmethod
    def of(cls, ids: Mapping[str, Any]) -> Generation:
        """By the names that configurations of checkpoints have for them: `eos_token_id`, one or a list, and so on."""
        eos = ids.get("eos_token_id")
        several = eos if isinstance(eos, list) else [] if eos is None else [eos]
        return cls(tuple(several), ids.get("bos_token_id"), ids.get("pad_token_id"))


def for_genai(lowered: Lowered) -> Lowered:
    """A step model under the generator's names. The model is changed in place; use only the result.

    Raises: CannotLower for one that isn't a language model in step form, or that has a state the generator can't keep.
    """
    graph = lowered.model.graph
    states = {s.path: s for s in lowered.states}
    kept = {x for s in lowered.states for x in (s.past, s.present)}
    inputs = [v for v in graph.inputs if v not in kept and v.name != COUNT]
    outputs = [v for v in graph.outputs if v not in kept]
    if LENGTH not in states:
        raise CannotLower(f"`{graph.name}` has no step form, and onnxruntime-genai generates step by step")
    if len(inputs) != 1 or len(outputs) != 1:
        names = ", ".join(str(v.name) for v in (*inputs, *outputs))
        raise CannotLower(f"onnxruntime-genai wants one input and one output, tokens and logits; there are {names}")
    theirs = {str(inputs[0].name): TOKENS, str(outputs[0].name): LOGITS}
    length = states.pop(LENGTH)
    for (layer, kind), s in _places(graph, list(states.values())).items():
        theirs[PAST + s.path] = PAST_NAME.format(layer=layer, kind=kind)
        theirs[PRESENT + s.path] = PRESENT_NAME.format(layer=layer, kind=kind)
    _derive(graph, inputs[0], length)
    for v in (*graph.inputs, *graph.outputs):
        v.name = theirs.get(str(v.name), v.name)
    lowered.model.metadata_props[NAMES] = json.dumps(theirs)
    below = {theirs.get(k, k): n for k, n in lowered.below.items()}
    return replace(lowered, states=list(states.values()), below=below)


def _places(graph: ir.Graph, states: list[StateLayout]) -> dict[tuple[int, str], StateLayout]:
    """States by (layer, kind). Layers are numbered in the order in which the model runs them."""
    first = {id(v): i for i, n in reversed(list(enumerate(graph))) for v in read(n)}
    layers: dict[str, int] = {}
    found: dict[tuple[int, str], StateLayout] = {}
    for s in sorted(states, key=lambda s: first.get(id(s.past), len(first))):
        parent, _, last = s.path.rpartition(".")
        kind = KINDS.get(last, "")
        rank = s.type.rank if s.type is not None else 0
        if rank not in RANKS[kind] if kind in RANKS else not kind or s.layout not in IN_PLACE:
            raise CannotLower(f"onnxruntime-genai has no place for the state `{s.path}`")
        inside = _LAYER.match(parent)
        place = layers.setdefault(inside[1] if inside else parent, len(layers)), kind
        if place in found:
            raise CannotLower(f"onnxruntime-genai has one place for `{found[place].path}` and `{s.path}`")
        found[place] = s
    for (layer, kind), s in found.items():
        other = next((k for k in RANKS if kind in RANKS and (layer, k) not in found), None)
        if other:
            raise CannotLower(f"onnxruntime-genai wants a {other} beside `{s.path}`, and its layer has none")
    return found


def _derive(graph: ir.Graph, tokens: ir.Value, length: StateLayout) -> None:
    """Replaces the state `length` and the input `count` by what the mask [batch, past + time] says: its ones are
    the valid entries of a stream, those of the last `time` columns the new ones."""
    mask = ir.Value(
        name=ATTENTION_MASK,
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape([tokens.shape[0], "total"]),  # type: ignore[index]
    )
    nodes: list[ir.Node] = []

    def op(kind: str, name: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        nodes.append(ir.node(kind, inputs, attributes=attributes or None, name=f"{ATTENTION_MASK}/{name}"))
        nodes[-1].outputs[0].name = nodes[-1].name
        return nodes[-1].outputs[0]

    def integer(name: str, value: int) -> ir.Value:
        return op("Constant", name, value_ints=[value])

    axis = integer("axis", 1)
    start = op("Neg", "start", op("Shape", "time", tokens, start=1, end=2))
    new = op("Slice", "new", mask, start, integer("end", 2**31 - 1), axis)
    count = op("Cast", COUNT, op("ReduceSum", "new_entries", new, axis, keepdims=0), to=ir.DataType.INT32)
    total = op("Cast", "total", op("ReduceSum", "entries", mask, axis, keepdims=0), to=ir.DataType.INT32)
    derived = {COUNT: count, str(length.past.name): op("Sub", LENGTH, total, count)}
    for v in list(graph.inputs):
        if str(v.name) in derived:
            graph.inputs.remove(v)
            ir.convenience.replace_all_uses_with(v, derived[str(v.name)])
    graph.inputs.insert(1, mask)
    graph.outputs[:] = [v for v in graph.outputs if v is not length.present]
    graph.insert_before(graph[0], nodes)
    needed = set(live(list(graph), list(graph.outputs)))
    graph.remove([n for n in graph if n not in needed], safe=True)


def write_config(folder: Path, lowered: Lowered, generation: Generation, longest: int) -> None:
    """`genai_config.json` of a model from `for_genai`. Sizes are read off the model; `longest` is the longest stream,
    which the generator wants to know even where there is none."""
    states = json.loads(lowered.model.metadata_props[NAMES])
    by_kind: dict[str, dict[int, StateLayout]] = {}
    for s in lowered.states:
        _, layer, kind = states[PAST + s.path].split(".")
        by_kind.setdefault(kind, {})[int(layer)] = s
    caches = by_kind.get("key", {})
    kinds = ("key", "value")  # the names of recurrent states can't be chosen
    windows = {n: int(s.type.sizes[2]) for n, s in caches.items() if s.layout == "window"}  # type: ignore[arg-type, union-attr]
    kv_heads, head = (int(next(iter(caches.values())).type.sizes[i]) for i in (1, 3)) if caches else (1, 1)  # type: ignore[arg-type, union-attr]
    attention = {"window": _attribute(lowered, "local_window_size"), "heads": _attribute(lowered, "num_heads")}
    (vocab,) = (int(v.shape[-1]) for v in lowered.model.graph.outputs if v.name == LOGITS and v.shape)  # type: ignore[arg-type]
    decoder: dict[str, Any] = {
        "filename": FILE,
        "head_size": head,
        "hidden_size": head * max(attention["heads"], default=1),
        "num_attention_heads": max(attention["heads"], default=1),
        "num_hidden_layers": 1 + max((n for layers in by_kind.values() for n in layers), default=-1),
        "num_key_value_heads": kv_heads,
        "inputs": {
            "input_ids": TOKENS,
            "attention_mask": ATTENTION_MASK,
            **{f"past_{kind}_names": PAST_NAME.format(layer="%d", kind=kind) for kind in kinds},
        },
        "outputs": {
            "logits": LOGITS,
            **{f"present_{kind}_names": PRESENT_NAME.format(layer="%d", kind=kind) for kind in kinds},
        },
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
    }
    if windows:
        (window,) = {w for w in attention["window"] if w > 0}
        (rows,) = set(windows.values())
        decoder["sliding_window"] = {
            "window_size": window, "cache_slack": rows - window, "slide_key_value_cache": False,
            "slide_inputs": False, "layers": sorted(windows),
        }  # fmt: skip
    told = {
        "model": {
            "type": "decoder",
            "vocab_size": vocab,
            "context_length": longest,
            **_ids(generation),
            "decoder": decoder,
        },
        "search": {
            "do_sample": False, "early_stopping": True, "max_length": longest, "min_length": 0,
            "num_beams": 1, "num_return_sequences": 1, "past_present_share_buffer": True, "repetition_penalty": 1.0,
            "temperature": 1.0, "top_k": 50, "top_p": 1.0,
        },
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(told, indent=2) + "\n")


def _ids(generation: Generation) -> dict[str, Any]:
    """Those ids that there are: an id beyond the vocabulary is refused. Without an eos the generator ends at id 0."""
    eos = list(generation.eos)
    ids = {"bos": generation.bos, "eos": eos[0] if len(eos) == 1 else eos or None, "pad": generation.pad}
    return {f"{name}_token_id": value for name, value in ids.items() if value is not None}


def _attribute(lowered: Lowered, name: str) -> set[int]:
    """The values of an attribute of the model's attention nodes."""
    nodes = (n for n in lowered.model.graph.all_nodes() if n.op_type == "GroupQueryAttention")
    return {n.attributes[name].as_int() for n in nodes if name in n.attributes}
