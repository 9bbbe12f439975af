"""The reference: runs a graph by the ops' own meanings, in NumPy float64. Obvious, slow, right."""

from .interpreter import Watch, default, run, sizes_of, zeros

__all__ = ["Watch", "default", "run", "sizes_of", "zeros"]
