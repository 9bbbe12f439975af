"""Gemma 2 in full: checkpoints in and out, streaming, text, quantised artefacts, distillation, speed beside others'."""
