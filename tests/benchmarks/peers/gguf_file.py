"""A checkpoint folder of Gemma 2 as the file that llama.cpp loads, written with the `gguf` package.

Differences of layout: norms hold 1 + weight, every matrix is quantised by the format's own reference code, and the
table is one tensor that serves as the head too.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..checkpoint import tensors

FORMATS = ("f32", "q8_0", "q4_0")

_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write_gguf(source: Path, target: Path, format: str) -> None:
    """Writes the checkpoint `source` in one of FORMATS."""
    import gguf

    kind = gguf.GGMLQuantizationType[format.upper()]
    whole = {"f32": "ALL_F32", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}[format]
    config = json.loads((source / "config.json").read_text())
    w = gguf.GGUFWriter(target, "gemma2")
    w.add_context_length(config.get("max_position_embeddings", 8192))
    w.add_embedding_length(config["hidden_size"])
    w.add_block_count(config["num_hidden_layers"])
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(config["num_attention_heads"])
    w.add_head_count_kv(config["num_key_value_heads"])
    w.add_key_length(config["head_dim"])
    w.add_value_length(config["head_dim"])
    w.add_layer_norm_rms_eps(config["rms_norm_eps"])
    w.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    w.add_final_logit_softcapping(config["final_logit_softcapping"])
    w.add_sliding_window(config["sliding_window"])
    w.add_file_type(gguf.LlamaFileType[whole])
    _add_vocabulary(w, config["vocab_size"])
    for name, array in tensors(source):
        _add(w, name, array, kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def _add(w: object, name: str, array: np.ndarray, kind: object) -> None:
    import gguf

    theirs = _their_name(name.removeprefix("model.").removesuffix(".weight"))
    if array.ndim == 1:
        w.add_tensor(theirs, array + 1)  # type: ignore[attr-defined]
    elif kind == gguf.GGMLQuantizationType.F32:
        w.add_tensor(theirs, array)  # type: ignore[attr-defined]
    else:
        w.add_tensor(theirs, gguf.quants.quantize(array, kind), raw_dtype=kind)  # type: ignore[attr-defined]


def _their_name(name: str) -> str:
    known = {"embed_tokens": "token_embd", "norm": "output_norm"}
    if name in known:
        return f"{known[name]}.weight"
    _, layer, rest = name.split(".", 2)
    return f"blk.{layer}.{_NAMES[rest]}.weight"


def _add_vocabulary(w: object, size: int) -> None:
    """A stand-in: every id has a text of its own, the first 256 are bytes. No text goes through it."""
    import gguf

    bytes_, kinds = min(size, 256), gguf.TokenType
    texts = [f"<0x{i:02X}>".encode() for i in range(bytes_)] + [f"w{i}".encode() for i in range(bytes_, size)]
    w.add_tokenizer_model("llama")  # type: ignore[attr-defined]
    w.add_token_list(texts)  # type: ignore[attr-defined]
    w.add_token_scores([0.0] * size)  # type: ignore[attr-defined]
    w.add_token_types([kinds.BYTE] * bytes_ + [kinds.NORMAL] * (size - bytes_))  # type: ignore[attr-defined]
