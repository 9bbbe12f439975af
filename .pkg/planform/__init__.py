"""Planform: one spec, one typed graph, every artefact checked against it."""

__version__ = "0.1.0"
