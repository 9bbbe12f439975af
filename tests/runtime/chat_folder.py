"""A tokenizer's folder for conversations, as checkpoints bring it: Gemma's turns, in words of our own."""

from __future__ import annotations

import io
import json
from pathlib import Path

TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message.role not in ("user", "assistant") %}
        {{- raise_exception("there is no " ~ message.role ~ " in this house") }}
    {%- elif (message.role == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("user and assistant must take turns") }}
    {%- endif %}
    {%- set speaker = "model" if message.role == "assistant" else message.role %}
    {{- "<start_of_turn>" ~ speaker ~ "\\n" ~ message.content | trim ~ "<end_of_turn>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<start_of_turn>model\\n" }}
{%- endif %}
"""
SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>",
    "unk_token": {"__type": "AddedToken", "content": "<unk>", "lstrip": False, "normalized": False, "rstrip": False,
                  "single_word": False, "special": True},
    "clean_up_tokenization_spaces": False,
}  # fmt: skip
TEXT = ["the quick brown fox jumps over the lazy dog", "how now brown cow", "user model hi there 0123456789"]


def json_folder(folder: Path, template: str | None = TEMPLATE, vocab: int = 300, apart: bool = False) -> Path:
    """With a tokenizer.json. `apart`: the template in a file of its own."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(TEXT, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    _settings(folder, template, apart)
    return folder


def pieces_folder(folder: Path, template: str | None = TEMPLATE, apart: bool = False) -> Path:
    """With a SentencePiece model, of which the turns' marks are pieces, and bos is none that a text can hold."""
    import sentencepiece

    model = io.BytesIO()
    lines = Path(sentencepiece.__file__).read_text().splitlines() + TEXT
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=400, byte_fallback=True, pad_id=0, eos_id=1,
        bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", unk_piece="<unk>",
        user_defined_symbols=SPECIALS[4:], minloglevel=2, split_digits=True, remove_extra_whitespaces=False,
        model_type="bpe", normalization_rule_name="identity", add_dummy_prefix=False,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    _settings(folder, template, apart)
    return folder


def _settings(folder: Path, template: str | None, apart: bool) -> None:
    told = dict(SETTINGS)
    if template is not None and not apart:
        told["chat_template"] = template
    if template is not None and apart:
        (folder / "chat_template.jinja").write_text(template)
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
