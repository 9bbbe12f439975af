"""Quantised artefacts: which matrices become how small, calibrated, measured and kept within a budget."""

from .choose import Choice, Wish, quantise
from .entries import Entries, made_up, of_run

__all__ = ["Choice", "Entries", "Wish", "made_up", "of_run", "quantise"]
