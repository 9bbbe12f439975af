"""Linear recurrences: h_t = a_t h_(t-1) + b_t, by the form that suits the platform, on any number of devices."""

from .decayed import FORGET, Scan, decayed
from .kernel import Kernel
from .plain import Plain

__all__ = ["FORGET", "Kernel", "Plain", "Scan", "decayed"]
