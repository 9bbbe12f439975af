"""Signals as latents of a field: encoding, rendering, and the files of latents (functasets)."""
