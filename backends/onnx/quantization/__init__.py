"""Quantised weights and caches: what is stored how, the rounding, and the products that read it."""

from .products import Product, lookup, product
from .rounding import Rounded, rounded
from .scheme import CACHE_WIDTH, KINDS, PLAIN, Quantization, Range, Scheme

__all__ = [
    "CACHE_WIDTH",
    "KINDS",
    "PLAIN",
    "Product",
    "Quantization",
    "Range",
    "Rounded",
    "Scheme",
    "lookup",
    "product",
    "rounded",
]
