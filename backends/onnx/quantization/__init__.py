"""Quantised weights and caches: what is stored how, the rounding, and the products that read it."""

from .products import Product, lookup, product
from .rounding import Rounded, rounded
from .scheme import KINDS, PLAIN, Quantization, Scheme

__all__ = [
    "KINDS",
    "PLAIN",
    "Product",
    "Quantization",
    "Rounded",
    "Scheme",
    "lookup",
    "product",
    "rounded",
]
