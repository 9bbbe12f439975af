"""Data for training: batches as a pure function of (seed, step).

Names are imported when they are first asked for: a tokenizer alone (for generation) doesn't load the pipeline.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arrays import ArrayData, load_arrays
    from .bigram import bigram_bits_per_byte, count_pairs
    from .corpus import Corpus, Document, read_corpus, stdlib_corpus
    from .images import ImageData, View
    from .latents import LatentData
    from .pictures import load_pictures
    from .signals import SignalData, grid, load_signals
    from .source import Batch, DataSource, Share
    from .store import Store, open_store
    from .text import TextData
    from .tokenizers import ByteTokenizer, JsonTokenizer, TextStream, Tokenizer, load_tokenizer

_MODULES = {
    "arrays": "ArrayData load_arrays",
    "bigram": "bigram_bits_per_byte count_pairs",
    "corpus": "Corpus Document read_corpus stdlib_corpus",
    "images": "ImageData View",
    "latents": "LatentData",
    "pictures": "load_pictures",
    "signals": "SignalData grid load_signals",
    "source": "Batch DataSource Share",
    "store": "Store open_store",
    "text": "TextData",
    "tokenizers": "ByteTokenizer JsonTokenizer TextStream Tokenizer load_tokenizer",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


__all__ = [
    "ArrayData",
    "Batch",
    "ByteTokenizer",
    "Corpus",
    "DataSource",
    "Document",
    "ImageData",
    "JsonTokenizer",
    "LatentData",
    "Share",
    "SignalData",
    "Store",
    "TextData",
    "TextStream",
    "Tokenizer",
    "View",
    "bigram_bits_per_byte",
    "count_pairs",
    "grid",
    "load_arrays",
    "load_pictures",
    "load_signals",
    "load_tokenizer",
    "open_store",
    "read_corpus",
    "stdlib_corpus",
]
