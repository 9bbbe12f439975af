"""Data for training: batches as a pure function of (seed, step)."""

from .arrays import ArrayData, load_arrays
from .bigram import bigram_bits_per_byte, count_pairs
from .corpus import Corpus, Document, read_corpus, stdlib_corpus
from .source import Batch, DataSource, Share
from .store import Store, open_store
from .text import TextData
from .tokenizers import ByteTokenizer, JsonTokenizer, TextStream, Tokenizer, load_tokenizer

__all__ = [
    "ArrayData",
    "Batch",
    "ByteTokenizer",
    "Corpus",
    "DataSource",
    "Document",
    "JsonTokenizer",
    "Share",
    "Store",
    "TextData",
    "TextStream",
    "Tokenizer",
    "bigram_bits_per_byte",
    "count_pairs",
    "load_arrays",
    "load_tokenizer",
    "open_store",
    "read_corpus",
    "stdlib_corpus",
]
